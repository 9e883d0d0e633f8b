//! The layers of `docs/architecture.md`: a module imports only what stands above it.

use std::fs;
use std::path::Path;

/// From the ground up. The command line may import all of them.
const LAYERS: &str = "error files tensor graph cpu ops passes device schedule nn diffusion methods weights data image model \
                      sampler trainer bench";

/// Modules that a line of code names after `crate::`.
fn imports(code: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        // `crate::{Error, nn::Network}` names several.
        let list = rest.strip_prefix('{').map(|r| r.split('}').next().unwrap_or(""));
        let names: Vec<&str> = list.map_or(vec![rest], |list| list.split(',').map(str::trim).collect());
        for name in names {
            let name = name.split(|c| !is_name(c)).next().unwrap_or("");
            found.push(match name {
                "Error" | "Result" => "error",
                "Device" => "device",
                "Model" => "model",
                "simd" => "cpu",
                other => other,
            });
        }
    }
    found
}

/// Notes what files under `path` import although it does not stand in `above`.
fn check(path: &Path, above: &[&str], faults: &mut Vec<String>) {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a readable folder");
        entries.for_each(|entry| check(&entry.expect("a readable entry").path(), above, faults));
        return;
    }
    let text = fs::read_to_string(path).expect("a readable file");
    // Tests may use whatever they like.
    let code = text.split("#[cfg(test)]").next().unwrap_or("");
    for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
        let wrong = imports(line).into_iter().filter(|name| !above.contains(name));
        faults.extend(wrong.map(|name| format!("{}:{} imports {name}", path.display(), number + 1)));
    }
}

#[test]
fn modules_import_only_what_stands_above_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers: Vec<&str> = LAYERS.split_whitespace().collect();
    let mut faults = Vec::new();
    for (i, name) in layers.iter().enumerate() {
        let files = [src.join(name), src.join(format!("{name}.rs"))];
        files.iter().filter(|path| path.exists()).for_each(|path| check(path, &layers[..=i], &mut faults));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for entry in fs::read_dir(&src).expect("src") {
        let file = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let name = file.trim_end_matches(".rs");
        assert!(layers.contains(&name) || ["cli", "lib", "main"].contains(&name), "{name} has no layer");
    }
}
