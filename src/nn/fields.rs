//! Reading the fields of a JSON object, with errors that name the file and the field.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The fields of a JSON object.
pub struct Fields {
    pub path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// Parses an object; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Fields> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Fields { path: path.to_owned(), map }),
            Ok(_) => Err(Error::format(path, "not a JSON object")),
            Err(e) => Err(Error::format(path, e.to_string())),
        }
    }

    /// An error about a field.
    pub fn fail(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::config(&self.path, field, reason)
    }

    /// A field's value is not what is wanted.
    pub fn wrong(&self, field: &str, value: &Value, wanted: &str) -> Error {
        let text: String = value.to_string().chars().take(80).collect();
        self.fail(field, format!("{text} is not {wanted}"))
    }

    /// The value, if the key is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// True if the key is there with null: none, where absence would be the default.
    pub fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_null)
    }

    /// `value` as a whole number.
    pub fn integer(&self, field: &str, value: &Value, range: &RangeInclusive<usize>) -> Result<usize> {
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
        n.filter(|n| range.contains(n)).ok_or_else(|| {
            self.wrong(field, value, &format!("a whole number from {} to {}", range.start(), range.end()))
        })
    }

    /// A whole number, or none if the key is absent or null.
    pub fn optional(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        self.get(field).map(|v| self.integer(field, v, &range)).transpose()
    }

    /// A whole number; null is an error.
    pub fn size(&self, field: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        if self.is_null(field) {
            return Err(self.fail(field, "must not be null"));
        }
        Ok(self.optional(field, range)?.unwrap_or(default))
    }

    /// A whole number that must be there.
    pub fn required(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.optional(field, range)?.ok_or_else(|| self.fail(field, "is missing"))
    }

    /// A number; null is the default.
    pub fn number(&self, field: &str, default: f64, range: RangeInclusive<f64>) -> Result<f32> {
        let Some(value) = self.get(field) else { return Ok(default as f32) };
        let wanted = || self.wrong(field, value, &format!("a number from {} to {}", range.start(), range.end()));
        value.as_f64().filter(|n| range.contains(n)).map(|n| n as f32).ok_or_else(wanted)
    }

    /// True or false; null is the default.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(field, value, "true or false"))
    }

    /// A string; without a default the key must be there.
    pub fn word<'a>(&'a self, field: &str, default: Option<&'a str>) -> Result<&'a str> {
        match self.get(field) {
            Some(value) => value.as_str().ok_or_else(|| self.wrong(field, value, "a string")),
            None => default.ok_or_else(|| self.fail(field, "is missing")),
        }
    }

    /// A list, or none if the key is absent or null.
    pub fn list(&self, field: &str, length: RangeInclusive<usize>) -> Result<Option<&Vec<Value>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.wrong(field, value, "a list"))?;
        if !length.contains(&list.len()) {
            let reason = format!("has {} entries, not from {} to {}", list.len(), length.start(), length.end());
            return Err(self.fail(field, reason));
        }
        Ok(Some(list))
    }

    /// A list of whole numbers.
    pub fn sizes(
        &self,
        field: &str,
        default: &[usize],
        length: RangeInclusive<usize>,
        range: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        match self.list(field, length)? {
            Some(list) => list.iter().map(|v| self.integer(field, v, &range)).collect(),
            None => Ok(default.to_vec()),
        }
    }

    /// One whole number for every level, or a list with one for each.
    pub fn by_level(
        &self,
        field: &str,
        default: usize,
        levels: usize,
        range: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        if self.get(field).is_some_and(Value::is_array) {
            return self.sizes(field, &[], levels..=levels, range);
        }
        Ok(vec![self.size(field, default, range)?; levels])
    }

    /// Fails unless a list has an entry for every level.
    pub fn same_length(&self, field: &str, found: usize, levels: usize) -> Result<()> {
        if found == levels {
            return Ok(());
        }
        Err(self.fail(field, format!("has {found} entries, block_out_channels {levels}")))
    }

    /// Fails if the key is there with a value that is neither null nor `neutral`: a feature that langevin does not
    /// have.
    pub fn lacks(&self, field: &str, neutral: &[Value]) -> Result<()> {
        let equal = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        match self.get(field) {
            Some(value) if !neutral.iter().any(|n| equal(value, n)) => {
                let text: String = value.to_string().chars().take(80).collect();
                Err(self.fail(field, format!("{text} is not supported")))
            }
            _ => Ok(()),
        }
    }
}
