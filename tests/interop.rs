//! What is trained here loads in diffusers, and adapters in PEFT.
//!
//! `tests/interop/*/` hold what the library itself saved: the configurations that are trained from, and the names, types and shapes
//! of the tensors that must come out. Where `python3` has torch, diffusers and peft, the library loads the models and answers as langevin
//! does; `LANGEVIN_REQUIRE=diffusers` makes their absence an error.

mod support;

use langevin::Device;
use langevin::run::{Run, Settings};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{ZipFile, entry, safetensors, zip};
use tempfile::TempDir;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");
const NETWORKS: [&str; 2] = ["unet2d", "dit"];

/// A few steps on 16×16 images in two classes; the model folder that came of it.
fn train(place: &TempDir, network: &str) -> PathBuf {
    let pixel = |i: usize, p: usize| ((p * (i + 3) * 7) % 256) as u8;
    let image = |i: usize| (0..768).map(|p| pixel(i, p)).collect::<Vec<u8>>();
    let labels: Vec<String> = (0..8).map(|i| format!(r#"["{i}.png",{}]"#, i % 2)).collect();
    let mut files = vec![ZipFile::new("dataset.json", format!(r#"{{"labels":[{}]}}"#, labels.join(",")))];
    files.extend(
        (0..8).map(|i| ZipFile::new(&format!("{i}.png"), support::png(16, 16, png::ColorType::Rgb, &image(i)))),
    );
    let data = place.path().join("data.zip");
    std::fs::write(&data, zip(&files)).unwrap();
    let settings = Settings {
        network: format!("{HERE}/{network}/config.json"),
        data: data.display().to_string(),
        steps: 5,
        batch: 4,
        lr: 1e-2,
        warmup: 0,
        // The average is the last step's weights.
        ema_half_life: vec![0.0],
        ..Settings::default()
    };
    let out = place.path().join(network);
    finish(&out, settings)
}

fn finish(out: &Path, settings: Settings) -> PathBuf {
    Run::start(out, settings, Device::Cpu).unwrap().finish(&mut |_, _| Ok(())).unwrap();
    out.join("model")
}

/// The model folder of an adapter that a few more steps made of the model in `from`.
fn tune(place: &TempDir, from: &Path) -> PathBuf {
    let settings = Settings {
        from: from.display().to_string(),
        lora_rank: 3,
        lora_alpha: 5.0,
        lora_targets: vec!["attention".into(), "conv".into()],
        data: place.path().join("data.zip").display().to_string(),
        steps: 5,
        batch: 4,
        lr: 1e-2,
        warmup: 0,
        ema_half_life: vec![0.0],
        ..Settings::default()
    };
    finish(&place.path().join("tuned"), settings)
}

fn json_of(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn trained_models_have_the_files_that_diffusers_writes() {
    let place = tempfile::tempdir().unwrap();
    for network in NETWORKS {
        let model = train(&place, network);
        assert_eq!(json_of(model.join("config.json")), json_of(format!("{HERE}/{network}/config.json")));
        let file = std::fs::read(model.join("diffusion_pytorch_model.safetensors")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header.metadata().as_ref().and_then(|m| m.get("format")).map(String::as_str), Some("pt"));
        let mut ours: Vec<(String, Value)> = header
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, json!([format!("{:?}", info.dtype), info.shape])))
            .collect();
        ours.sort_by(|a, b| a.0.cmp(&b.0));
        let theirs = json_of(format!("{HERE}/{network}/tensors.json"));
        let mut theirs: Vec<(String, Value)> = theirs.as_object().unwrap().clone().into_iter().collect();
        theirs.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(ours, theirs, "{network}");
        // The keys that DDIMScheduler has, at the values of this run.
        let scheduler = json_of(model.join("scheduler_config.json"));
        assert_eq!(
            (&scheduler["_class_name"], &scheduler["prediction_type"]),
            (&"DDIMScheduler".into(), &"epsilon".into())
        );
        assert_eq!((&scheduler["beta_schedule"], &scheduler["num_train_timesteps"]), (&"linear".into(), &1000.into()));
    }
}

/// Whether the library is there; if not, why.
fn diffusers() -> Result<(), String> {
    match Command::new("python3").args(["-c", "import torch, diffusers, peft"]).output() {
        Err(e) => Err(format!("python3: {e}")),
        Ok(out) if !out.status.success() => {
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            Err(text.lines().last().unwrap_or("it cannot be imported").to_owned())
        }
        Ok(_) => Ok(()),
    }
}

/// Inputs of a network as safetensors: two samples at two times, with classes if it has them.
fn inputs([channels, side]: [usize; 2], classes: bool) -> Vec<u8> {
    let n = 2 * channels * side * side;
    let sample = (0..n).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 1.5);
    let mut data: Vec<u8> = sample.chain([10.0, 700.0]).flat_map(f32::to_le_bytes).collect();
    let end = 4 * n as u64;
    let shape = format!("[2,{channels},{side},{side}]");
    let mut header = entry("sample", "F32", &shape, 0, end) + "," + &entry("timestep", "F32", "[2]", end, end + 8);
    if classes {
        header += &format!(",{}", entry("class_labels", "I64", "[2]", end + 8, end + 24));
        data.extend([1i64, 0].into_iter().flat_map(i64::to_le_bytes));
    }
    safetensors(&format!("{{{header}}}"), &data)
}

#[test]
fn diffusers_loads_what_was_trained_and_answers_the_same() {
    if let Err(reason) = diffusers() {
        let required = std::env::var("LANGEVIN_REQUIRE").is_ok_and(|r| r.split(',').any(|r| r == "diffusers"));
        assert!(!required, "LANGEVIN_REQUIRE has diffusers, but {reason}");
        println!("skipped: python3 has no diffusers: {reason}");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/mnist-dit");
    let unet = train(&place, "unet2d");
    let models = [
        (tune(&place, &unet), inputs([3, 16], false)),
        (unet, inputs([3, 16], false)),
        (train(&place, "dit"), inputs([3, 16], true)),
        (embedded, inputs([1, 28], true)),
    ];
    for (model, inputs) in models {
        let [given, answer] = ["in.safetensors", "out.safetensors"].map(|name| place.path().join(name));
        std::fs::write(&given, inputs).unwrap();
        let run = |command: &mut Command| {
            let out = command.output().unwrap();
            assert!(out.status.success(), "{}: {}", model.display(), String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        let mut forward = Command::new(env!("CARGO_BIN_EXE_langevin"));
        run(forward
            .args(["forward", "--quiet", "--model"])
            .arg(&model)
            .arg("--inputs")
            .arg(&given)
            .arg("--output")
            .arg(&answer));
        let mut check = Command::new("python3");
        print!("{}", run(check.arg(format!("{HERE}/reference.py")).arg("check").args([&model, &given, &answer])));
    }
}
