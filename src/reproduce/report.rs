//! What a reproduction found, as data, as JSON and as Markdown.

use super::Part;
use crate::eval::Estimate;
use crate::files::write_atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;

/// The files of a report.
const JSON: &str = "w2sd.json";
const MARKDOWN: &str = "w2sd.md";

/// Sections, one for each part that was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub sections: Vec<Section>,
}

/// What one part found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    pub part: Part,
    pub title: String,
    /// How it was measured.
    pub text: String,
    pub tables: Vec<Table>,
    pub findings: Vec<Finding>,
    pub pictures: Vec<Picture>,
}

/// A table; every row has a value, or none, for every column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub title: String,
    /// What rows are.
    pub rows_are: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// Digits behind the point that are shown.
    pub digits: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub cells: Vec<Option<Cell>>,
}

/// A number, with its 95 % interval where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub value: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

/// A claim, and whether the numbers bear it out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub claim: String,
    pub shown: bool,
    pub numbers: String,
}

/// A file beside the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    pub file: String,
    pub caption: String,
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Cell { value, interval: None }
    }
}

impl From<Estimate> for Cell {
    fn from(estimate: Estimate) -> Self {
        Cell { value: estimate.value, interval: estimate.interval }
    }
}

impl Table {
    /// A table without rows; columns are names with the digits that are shown of their numbers.
    pub fn new(title: &str, rows_are: &str, columns: &[(&str, usize)]) -> Table {
        let columns = columns.iter().map(|(name, digits)| Column { name: (*name).into(), digits: *digits }).collect();
        Table { title: title.into(), rows_are: rows_are.into(), columns, rows: vec![] }
    }

    pub fn row(&mut self, name: impl Into<String>, cells: Vec<Option<Cell>>) {
        self.rows.push(Row { name: name.into(), cells });
    }

    fn markdown(&self) -> String {
        let mut text = format!("{}\n\n| {} |", self.title, self.rows_are);
        self.columns.iter().for_each(|c| text += &format!(" {} |", c.name));
        text += &format!("\n|---|{}\n", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            text += &format!("| {} |", row.name);
            for (cell, column) in row.cells.iter().zip(&self.columns) {
                text += &format!(" {} |", cell.map_or(String::new(), |c| c.show(column.digits)));
            }
            text += "\n";
        }
        text
    }
}

impl Cell {
    fn show(&self, digits: usize) -> String {
        match self.interval {
            None => format!("{:.digits$}", self.value),
            Some([low, high]) => format!("{:.digits$} ({low:.digits$} to {high:.digits$})", self.value),
        }
    }
}

impl Report {
    /// The report in a folder, of the parts that were run before; an empty one if there is none.
    ///
    /// # Errors
    /// [`Error::Format`] if its JSON is not that of a report.
    pub fn open(folder: &Path) -> Result<Report> {
        let path = folder.join(JSON);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::format(&path, e.to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Report::default()),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    /// Adds a section in its place, over an earlier one of the same part.
    pub fn put(&mut self, section: Section) {
        self.sections.retain(|s| s.part != section.part);
        self.sections.push(section);
        self.sections.sort_by_key(|s| s.part);
    }

    /// Writes both files.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::format(folder.join(JSON), e.to_string()))?;
        write_atomic(folder.join(JSON), &json)?;
        write_atomic(folder.join(MARKDOWN), self.markdown().as_bytes())
    }

    /// The report as text.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# W2SD reproduced\n");
        for section in &self.sections {
            let _ = write!(text, "\n## {}\n\n{}\n", section.title, section.text);
            section.tables.iter().for_each(|t| text += &format!("\n{}", t.markdown()));
            if !section.findings.is_empty() {
                text += "\n";
            }
            for Finding { claim, shown, numbers } in &section.findings {
                let verdict = if *shown { "shown" } else { "not shown" };
                let _ = writeln!(text, "* {claim}: **{verdict}** ({numbers}).");
            }
            for Picture { file, caption } in &section.pictures {
                let _ = write!(text, "\n![{caption}]({file})\n\n*{caption}*\n");
            }
        }
        text
    }
}
