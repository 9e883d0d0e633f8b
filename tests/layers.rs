//! Layers: every module imports only what stands above it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From the top down; modules of one line stand beside each other and may not know one another, unless the second list
/// says so.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["tensor"],
    &["cpu"],
    &["graph", "ptx"],
    &["ops"],
    &["passes"],
    &["device"],
    &["schedule"],
    &["nn"],
    &["files", "image", "weights", "data", "diffusion", "eval", "collective"],
    &["methods"],
    &["model"],
    &["features"],
    &["sampler", "trainer", "bench"],
    &["lab"],
    &["run"],
    &["classifier"],
    &["evaluator"],
    &["reproduce"],
    &["cli"],
];

/// Who among neighbours may import whom.
const BESIDE: &[(&str, &str)] = &[
    ("weights", "files"),
    ("data", "files"),
    ("data", "weights"),
    ("image", "files"),
    ("eval", "files"),
    ("eval", "weights"),
];

/// Pairs that the order would allow and the design does not: the PTX machine stands alone; devices know launches, not ops;
/// noise levels and readers of files know nothing of networks.
const FORBIDDEN: &[(&str, &str)] = &[
    ("ptx", "tensor"),
    ("ptx", "cpu"),
    ("ops", "ptx"),
    ("passes", "ptx"),
    ("device", "ops"),
    ("device", "passes"),
    ("schedule", "ops"),
    ("diffusion", "nn"),
    ("diffusion", "schedule"),
    ("diffusion", "graph"),
    ("weights", "nn"),
    ("data", "nn"),
    ("files", "schedule"),
    ("methods", "data"),
    ("methods", "weights"),
    ("methods", "image"),
    ("methods", "eval"),
    ("eval", "nn"),
    ("eval", "schedule"),
];

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|l| l.contains(&module));
    found.unwrap_or_else(|| panic!("module `{module}` has no layer: put it into LAYERS"))
}

/// The module that a name at the crate's root belongs to.
fn module_of(name: &str) -> &str {
    match name {
        "Error" | "Result" => "error",
        "Device" => "device",
        "Model" => "model",
        // A macro that `cpu` exports.
        "simd" => "cpu",
        module => module,
    }
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The first names after each `crate::` outside of comments; all names of `crate::{…}`.
fn imports(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect();
    let code = code.join("\n");
    let mut names = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(top_names(list)),
            None => names.extend([identifier(rest)]),
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first name of each element of a list that ends with its brace.
fn top_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(identifier(&list[start..i]));
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

#[test]
fn each_layer_imports_only_what_stands_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        for name in imports(&std::fs::read_to_string(&file).unwrap()) {
            let other = module_of(&name);
            let (from, to) = (layer(module), layer(other));
            let beside = from == to && (module == other || BESIDE.contains(&(module, other)));
            if (from <= to && !beside) || FORBIDDEN.contains(&(module, other)) {
                wrong.push(format!("{} imports {other}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found() {
    let text =
        "use crate::{Error, nn::{a, b}, Result};\nuse crate::tensor::X; // crate::no\nlet x = crate::ops::f();\n";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["Error", "Result", "nn", "ops", "tensor"]);
}
