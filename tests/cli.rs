//! The command as people run it: results against PyTorch, and bad input of every kind.

mod support;

use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{entry, raw_safetensors, safetensors};
use tempfile::TempDir;

const SCHEDULER: &str = r#"{"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": false}"#;
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// A folder for the files of one test, and the command run in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn command(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_langevin"));
        // A layer of Mesa's looks for a desktop when adapters are listed, and complains if there is none.
        command.env("NODEVICE_SELECT", "1").current_dir(self.0.path()).args(line.split_whitespace()).output().unwrap()
    }

    /// Runs what must succeed; its standard output.
    fn run(&self, line: &str) -> String {
        let out = self.command(line);
        assert!(out.status.success(), "{line}\n{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.run(line)).unwrap()
    }

    /// Runs what must fail with an exit code and a message that holds all of `words`.
    fn fail(&self, code: i32, line: &str, words: &[&str]) {
        let start = std::time::Instant::now();
        let out = self.command(line);
        let message = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{line}\n{message}");
        assert!(!message.contains("panicked"), "{line}\n{message}");
        for word in words {
            assert!(message.contains(word), "{line}\nlacks `{word}`: {message}");
        }
        assert!(start.elapsed().as_secs() < 20, "{line} took {:?}", start.elapsed());
    }

    /// Samples with the arguments; what came out.
    fn sample(&self, args: &str) -> Vec<f32> {
        self.run(&format!("sample {args} --save-samples got.safetensors --quiet"));
        tensor(&self.path("got.safetensors"), "sample")
    }

    /// A model folder from its two files.
    fn model(&self, name: &str, config: &str, weights: &[u8]) {
        self.write(&format!("{name}/config.json"), config);
        self.write(&format!("{name}/{WEIGHTS}"), weights);
    }
}

fn tensor(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn names(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(String::from).collect()
}

/// ‖a − b‖ / ‖b‖
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| (*a - *b) as f64)) / norm(&mut b.iter().map(|v| *v as f64)).max(1e-30)
}

fn f32_bytes(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

// --- forward -----------------------------------------------------------------------------------------------------

#[test]
fn forward_agrees_with_pytorch() {
    let place = Place::new();
    for case in ["unet2d", "unet2d_condition", "unet2d_condition_sdxl_two_levels", "dit", "edm_ddpmpp", "edm_ncsnpp"] {
        let (dir, expected) = (golden(case), golden(case).join("expected.safetensors"));
        let line = format!(
            "forward --model {0}/model --inputs {0}/inputs.safetensors --output out.safetensors",
            dir.display()
        );
        let output = if case.starts_with("edm") { "denoised" } else { "sample" };
        for extra in ["", " --grad", " --grad --recompute cheap", " --grad --recompute blocks"] {
            place.run(&format!("{line}{extra}"));
            let out = place.path("out.safetensors");
            let off = distance(&tensor(&out, output), &tensor(&expected, output));
            assert!(off <= 1e-4, "{case}{extra}: {off}");
            if !extra.is_empty() {
                check_gradients(case, &out, &expected);
            }
        }
    }
}

/// Every gradient of the reference is there. Those that are zero but for rounding are held against the largest.
fn check_gradients(case: &str, out: &Path, expected: &Path) {
    let wanted: Vec<(String, Vec<f32>)> = names(expected)
        .into_iter()
        .filter(|n| n.starts_with("grad.") || n == "d_sample")
        .map(|n| (n.clone(), tensor(expected, &n)))
        .collect();
    let norm = |x: &[f32]| x.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
    let largest = wanted.iter().map(|(_, x)| norm(x)).fold(0.0, f64::max);
    for (name, wanted) in wanted {
        let off = distance(&tensor(out, &name), &wanted) * norm(&wanted) / norm(&wanted).max(1e-5 * largest);
        assert!(off <= 1e-3 || off * norm(&wanted) <= 1e-5 * largest, "{case}: {name} is off by {off}");
    }
}

// --- sample ------------------------------------------------------------------------------------------------------

/// Arguments that sample the golden UNet; the scheduler's file is made.
fn unet(place: &Place) -> String {
    place.write("scheduler.json", SCHEDULER);
    format!("--model {} --scheduler-config scheduler.json --steps 10 ", golden("unet2d/model").display())
}

#[test]
fn trajectories_agree_with_diffusers() {
    let place = Place::new();
    let (args, expected) = (unet(&place), golden("trajectories/expected.safetensors"));
    let latents = golden("trajectories/inputs.safetensors");
    for (sampler, name) in [("ddim", "ddim"), ("euler", "euler"), ("heun", "heun"), ("dpmpp-2m", "dpmpp_2m")] {
        let got = place.sample(&format!("{args} --sampler {sampler} --latents {}", latents.display()));
        let off = distance(&got, &tensor(&expected, name));
        println!("{sampler}: {off:.1e}");
        assert!(off <= 1e-5, "{sampler}: {off}");
    }
}

#[test]
fn edm_heun_agrees_with_the_released_sampler() {
    let place = Place::new();
    let dir = golden("edm_ddpmpp");
    let latents = dir.join("inputs.safetensors");
    let line = format!("--model {}/model --steps 6 --latents {}", dir.display(), latents.display());
    let off = distance(&place.sample(&line), &tensor(&dir.join("expected.safetensors"), "heun6"));
    println!("{off:.1e}");
    assert!(off <= 1e-5, "{off}");
}

#[test]
fn images_depend_on_the_seed_alone() {
    let place = Place::new();
    let args = unet(&place).replace("10", "3");
    let all = place.sample(&format!("{args} --n 5 --batch 5 --seed 9"));
    assert_eq!(all, place.sample(&format!("{args} --n 5 --batch 5 --seed 9")), "the same seed");
    assert_eq!(all, place.sample(&format!("{args} --n 5 --batch 5 --seed 9 --threads 1")), "one thread");
    assert_ne!(all, place.sample(&format!("{args} --n 5 --batch 5 --seed 10")), "another seed");
    let off = distance(&place.sample(&format!("{args} --n 5 --batch 2 --seed 9")), &all);
    assert!(off == 0.0, "in batches of two: off by {off}");
    for sampler in ["ddpm", "euler-a", "dpmpp-2m-sde"] {
        let [two, five] = [2, 5].map(|b| place.sample(&format!("{args} --sampler {sampler} --n 5 --batch {b}")));
        assert!(distance(&two, &five) == 0.0, "{sampler}");
    }
}

#[test]
fn saved_latents_give_the_same_images() {
    let place = Place::new();
    let args = unet(&place).replace("10", "3");
    let drawn = place.sample(&format!("{args} --n 3 --batch 2 --seed 4 --save-latents latents.safetensors"));
    assert_eq!(drawn, place.sample(&format!("{args} --batch 2 --latents latents.safetensors")));
    let latents = tensor(&place.path("latents.safetensors"), "latents");
    let square: f32 = latents.iter().map(|v| v * v).sum::<f32>() / latents.len() as f32;
    assert!((square - 1.0).abs() < 0.2, "variance {square}");
}

#[test]
fn guidance_of_one_is_none_and_two_costs_twice() {
    let place = Place::new();
    // A class-conditional network: four channels of a latent, eight outputs of which the last four are its variance.
    let args = format!("--model {} --steps 3 --n 2 --classes 1,4", golden("dit/model").display());
    let plain = place.sample(&args);
    assert_eq!(plain, place.sample(&format!("{args} --guidance 1")));
    assert_ne!(plain, place.sample(&format!("{args} --guidance 2")));
    let nfe = |args: &str| place.json(&format!("plan sample {args} --json"))["nfe"].as_u64().unwrap();
    assert_eq!((nfe(&args), nfe(&format!("{args} --guidance 2"))), (3, 6));
}

#[test]
fn plans_count_what_runs() {
    let place = Place::new();
    let args = unet(&place);
    let plan = place.json(&format!("plan sample {args} --json"));
    for key in ["launches", "flops", "bytes", "arena_peak", "arena_lower_bound"] {
        assert!(plan[key].as_u64().unwrap() > 0, "{key}");
    }
    assert_eq!(plan["nfe"], 10);
    assert!(plan["arena_peak"].as_u64() >= plan["arena_lower_bound"].as_u64());
    let heun = place.json(&format!("plan sample {args} --sampler heun --json"));
    assert_eq!(heun["nfe"], 19);
    let single = place.json(&format!("plan sample {args} --no-fuse --json"));
    assert!(single["launches"].as_u64() > plan["launches"].as_u64());
    assert!(place.run(&format!("plan sample {args}")).contains("network evaluations   10"));
    assert!(place.run(&format!("plan sample {args} --dot")).starts_with("digraph"));
    assert!(place.run(&format!("plan sample {args} --launches")).contains("conv2d"));
    let train = format!("plan train --network {} --batch 8 --device cpu", golden("unet2d/model").display());
    let plan = |how: &str| place.json(&format!("{train} --recompute {how} --json"));
    let [off, cheap, auto] = ["off", "cheap", "auto"].map(plan);
    assert!(cheap["scratch_peak"].as_u64() < off["scratch_peak"].as_u64() && off == auto);
    assert!(cheap["launches"].as_u64() > off["launches"].as_u64());
    let peak = place.run(&format!("{train} --peak"));
    assert!(peak.contains("buffer params f32") && peak.contains("group_norm of the forward pass"), "{peak}");
}

#[test]
fn fusion_changes_no_image() {
    let place = Place::new();
    for model in ["unet2d/model", "dit/model", "edm_ncsnpp/model"] {
        let args = format!("--model {} --steps 3 --n 2", golden(model).display());
        let off = distance(&place.sample(&args), &place.sample(&format!("{args} --no-fuse")));
        assert!(off <= 1e-5, "{model}: {off}");
    }
}

#[test]
fn pictures_and_results_are_written() {
    let place = Place::new();
    let args = unet(&place).replace("10", "2");
    let result = place.json(&format!("sample {args} --n 3 --out a.png --json"));
    assert_eq!((&result["n"], &result["nfe"], &result["out"]), (&3.into(), &2.into(), &"a.png".into()));
    let png = std::fs::read(place.path("a.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
    assert!(place.command(&format!("sample {args} --n 1 --quiet")).stderr.is_empty());
}

// --- the rest ----------------------------------------------------------------------------------------------------

#[test]
fn other_commands_answer() {
    let place = Place::new();
    let model = golden("edm_ddpmpp/model");
    let about = place.json(&format!("inspect {} --json", model.display()));
    assert_eq!((&about["class"], &about["height"]), (&"EDMPrecond".into(), &16.into()));
    let tensors = place.run(&format!("inspect {}", model.join(WEIGHTS).display()));
    assert!(tensors.contains("model.map_layer0.weight"), "{tensors}");
    assert!(place.run(&format!("inspect {} --graph", model.display())).contains("output denoised"));
    let devices = place.json("devices --json");
    let found = devices["devices"].as_array().unwrap().iter().find(|d| d["name"] == "wgpu").unwrap();
    let adapters = found["adapters"].as_array().unwrap();
    assert_eq!(found["available"], !adapters.is_empty());
    // A processor that plays GPU is never taken unasked.
    let hardware = adapters.first().is_some_and(|a| a["software"] == false);
    assert_eq!(devices["auto"], if hardware { "wgpu" } else { "cpu" });
    for adapter in adapters {
        assert!(adapter["name"].is_string() && adapter["buffer_bytes"].as_u64() > Some(0), "{adapter}");
        let text = place.run("devices");
        assert!(text.contains(adapter["name"].as_str().unwrap()) && text.contains("timestamps: "), "{text}");
    }
    assert!(devices["devices"].as_array().unwrap().iter().any(|d| d["name"] == "cuda" && d["available"] == false));
    assert!(place.run("completions bash").contains("_langevin"));
    for command in [
        "sample",
        "train",
        "compare",
        "eval",
        "forward",
        "plan",
        "inspect",
        "kernels",
        "bench",
        "devices",
        "completions",
    ] {
        assert!(place.run("--help").contains(command));
        assert!(!place.run(&format!("{command} --help")).is_empty());
    }
}

// --- kernels -------------------------------------------------------------------------------------------------------

/// A command line over the compiled kernel y = a x + y.
fn saxpy(rest: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ptx/saxpy.ptx");
    format!("kernels run {} --grid 2 --block 32 {rest}", file.display())
}

#[test]
fn kernels_run_without_a_gpu() {
    let place = Place::new();
    let numbers = "--entry saxpy --arg u32:50 --arg f32:3";
    let iota = saxpy(&format!("{numbers} --arg f32[50]=iota --arg f32[50]=iota --print 3 --save out.safetensors"));
    assert!(place.run(&iota).contains("saxpy_param_3 f32[50]\n  0 4 8 12"));
    let result: Vec<f32> = (0..50).map(|i| 4.0 * i as f32).collect();
    assert_eq!(tensor(&place.path("out.safetensors"), "saxpy_param_3"), result);
    let json = place.json(&format!("{iota} --json"));
    assert_eq!((&json["flops"], &json["loads"]["distinct_bytes"]), (&100.into(), &400.into()));
    assert_eq!(json["arrays"]["saxpy_param_3"]["values"][49], 196.0);

    let again = saxpy(&format!(
        "{numbers} --arg f32[50]=zeros --arg f32[50]=out.safetensors:saxpy_param_3 --print saxpy_param_3"
    ));
    assert!(place.run(&again).contains("f32[50]\n  0 4 8 12"));
    let random =
        |seed| place.run(&saxpy(&format!("{numbers} --arg f32[50]=random:{seed} --arg f32[50]=zeros --print 3")));
    assert_eq!(random(1), random(1));
    assert_ne!(random(1), random(2));
}

/// A product whose operands come by tensor maps: of a matrix and one of ones, so that every column has the sums of its rows.
#[test]
fn kernels_get_tensor_maps() {
    let place = Place::new();
    place.write(
        "ones.safetensors",
        safetensors(&format!("{{{}}}", entry("x", "BF16", "[4096]", 0, 8192)), &[0x80, 0x3f].repeat(4096)),
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ptx/gemm_sm90.ptx");
    let line = |a: &str| {
        let sizes = "--grid 1 --block 128 --shared 32768 --arg u32:64 --arg u32:64 --arg u32:64 --arg out:f32[4096] --print 5 --print 0";
        let (maps, rest) = (format!("--arg {a} --arg bf16[64x64/64x64]=ones.safetensors:x"), sizes);
        format!("kernels run {} --entry gemm {maps} {rest} --json", file.display())
    };
    let json = place.json(&line("bf16[64x64/64x64]=random"));
    let values = |name: &str| -> Vec<f64> {
        json["arrays"][name]["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let (x, y) = (values("gemm_param_0"), values("gemm_param_5"));
    for (row, y) in x.chunks(64).zip(y.chunks(64)) {
        assert!(y.iter().all(|y| (y - row.iter().sum::<f64>()).abs() < 1e-4), "{row:?}, {y:?}");
    }
    for (wrong, word) in [
        ("bf16[4096]=random", "an array, whose address has 64 bits"),
        ("bf16[64x64/64xa]=random", "has a box that is none"),
        ("bf16[60x64/64x64]=random", "are no multiples of 16"),
    ] {
        place.fail(1, &line(wrong), &[word]);
    }
}

#[test]
fn mistakes_about_kernels_are_named() {
    let place = Place::new();
    place.write("new.ptx", ".version 9.1\n.target sm_80\n");
    place.write("target.ptx", ".version 8.0\n.target gfx90\n");
    place.write("unknown.ptx", ".version 8.0\n.target sm_80\n.entry k()\n{\n  frobnicate.u32;\n}\n");
    place.write("x.safetensors", safetensors(&format!("{{{}}}", entry("x", "F32", "[2]", 0, 8)), &[0; 8]));
    let file = |name: &str| format!("kernels run {name} --entry k --grid 1 --block 1");
    let arrays = "--arg f32[50]=iota --arg f32[50]=iota";
    let cases: &[(String, &[&str])] = &[
        (file("none.ptx"), &["none.ptx"]),
        (file("new.ptx"), &["new.ptx", "line 1", "PTX 9.1 is newer than 8.8"]),
        (file("target.ptx"), &["line 2", "gfx90"]),
        (file("unknown.ptx"), &["line 5", "unknown instruction `frobnicate.u32`"]),
        (saxpy("--entry nope"), &["--entry", "`nope`", "it has: saxpy"]),
        (saxpy("--entry saxpy --arg u32:1"), &["--arg", "takes 4 (.u32 saxpy_param_0, .f32", "1 are given"]),
        (
            saxpy(&format!("--entry saxpy --arg f32:1 --arg f32:1 {arrays}")),
            &["`f32:1`", "parameter 0", "`.u32 saxpy_param_0`"],
        ),
        (
            saxpy(&format!("--entry saxpy --arg u32:1 --arg f32[2]=iota {arrays}")),
            &["`f32[2]=iota`", "`.f32 saxpy_param_1`"],
        ),
        (saxpy(&format!("--entry saxpy --arg u32:-1 --arg f32:1 {arrays}")), &["`u32:-1`", "not a number"]),
        (saxpy(&format!("--entry saxpy --arg u9:1 --arg f32:1 {arrays}")), &["`u9:1`", "none of the types"]),
        (saxpy("--entry saxpy --arg u32:1 --arg f32:1 --arg f32[0]=iota --arg f32[1]=iota"), &["f32[0]", "1 to"]),
        (saxpy("--entry saxpy --arg u32:1 --arg f32:1 --arg f32[1]=iota --arg f32[1]=many"), &["none of zeros, iota"]),
        (
            saxpy("--entry saxpy --arg u32:1 --arg f32:1 --arg f32[1]=iota --arg f32[3]=x.safetensors:x"),
            &["x.safetensors", "`x`", "F32 of 3 elements"],
        ),
        (
            saxpy(&format!("--entry saxpy --arg u32:1 --arg f32:1 {arrays} --print 1")),
            &["--print", "2 (saxpy_param_2)"],
        ),
        (
            saxpy(&format!("--entry saxpy --arg u32:1 --arg f32:1 {arrays} --grid 1,2,3,4")).replace("--grid 2 ", ""),
            &["--grid"],
        ),
        (saxpy(&format!("--entry saxpy --arg u32:1 --arg f32:1 {arrays} --shared 300000")), &["300000"]),
        (
            saxpy("--entry saxpy --arg u32:50 --arg f32:1 --arg f32[50]=iota --arg out:f32[50]"),
            &["kernel saxpy, block [0, 0, 0], thread [0, 0, 0], line", "nothing has written"],
        ),
        (
            saxpy("--entry saxpy --arg u32:50 --arg f32:1 --arg f32[40]=iota --arg f32[50]=iota"),
            &["block [1, 0, 0], thread [8, 0, 0]", "out of bounds", "`saxpy_param_2` of 160 bytes"],
        ),
    ];
    for (line, words) in cases {
        place.fail(1, line, words);
    }
}

// --- reflection --------------------------------------------------------------------------------------------------

#[test]
fn reflection_needs_nothing_but_its_name() {
    let place = Place::new();
    place.run("sample --reflect --n 4 --steps 3 --out both.png");
    place.run("sample --reflect --n 4 --steps 3 --out one.png --reflected-only");
    let width = |name: &str| u32::from_be_bytes(std::fs::read(place.path(name)).unwrap()[16..20].try_into().unwrap());
    assert_eq!(width("both.png"), 2 * width("one.png") + 16);
    // Euler's 18 guided steps, 17 reflections of two calls.
    assert_eq!(place.json("plan w2sd --json")["nfe"], 18 * 2 + 17 * 2);
    assert_eq!(place.json("plan w2sd --lambda 5 --json")["nfe"], 18 * 2 + 5 * 2);
    assert_eq!(place.json("plan w2sd --weak-guidance 0 --model mnist-unet --json")["nfe"], 18 * 2 + 17 * 3);
    assert_eq!(
        place.json("plan sample --resample --json")["nfe"],
        place.json("plan sample --cfg-plus-plus 0.5 --json")["nfe"].as_u64().unwrap() + 19
    );
}

#[test]
fn methods_are_compared_at_one_budget() {
    let place = Place::new();
    let got = place.json("compare --methods all --n 4 --steps 3 --out methods --json");
    let lines = got["methods"].as_array().unwrap();
    let names: Vec<&str> = lines.iter().map(|l| l["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["w2sd", "plain", "z-sampling", "resampling", "s2wd", "autoguidance", "cfg++", "calibrated-cfg"]);
    let most = lines[0]["nfe"].as_u64().unwrap();
    assert_eq!(most, 3 * 2 + 2 * 2);
    let number = |method: &str, key: &str| lines.iter().find(|l| l["method"] == method).unwrap()[key].as_f64().unwrap();
    for line in lines {
        let nfe = line["nfe"].as_u64().unwrap();
        assert!(nfe <= most && nfe + 5 > most, "{line}");
        assert!(line["metrics"][0][1].as_f64().unwrap() > 20.0, "{line}");
    }
    // Plain guidance is what it says it is, and the calibrated one is W2SD's.
    assert!((number("plain", "effective_guidance") - 2.5).abs() < 1e-3);
    let (w2sd, calibrated) = (number("w2sd", "effective_guidance"), number("calibrated-cfg", "effective_guidance"));
    assert!((w2sd - calibrated).abs() < 1e-3 && (w2sd - 2.5).abs() > 0.01, "{w2sd} {calibrated}");
    assert!(place.path("methods/samples.png").is_file());
    let table = place.run("compare --methods plain,w2sd --n 2 --steps 2 --budget time --out methods");
    assert!(table.contains("eff. guidance") && table.lines().count() == 3, "{table}");
    let alone = golden("unet2d/model");
    let weak = golden("trajectories/weak");
    let line = format!(
        "compare --methods plain,w2sd,calibrated-cfg --model {} --reflect-with {} --n 2 --steps 3 --budget steps",
        alone.display(),
        weak.display()
    );
    let got = place.json(&format!("{line} --json"));
    assert_eq!(
        got["methods"].as_array().unwrap().len(),
        2,
        "without an unconditional side there is nothing to calibrate"
    );
    assert!(got["methods"][0]["effective_guidance"].is_null());
    place.fail(1, "compare --methods plain,w3sd", &["w3sd", "z-sampling"]);
    place.fail(2, "compare", &["RUNS"]);
}

#[test]
fn reproduce_leaves_out_parts_without_data_and_names_mistakes() {
    let place = Place::new();
    let out = place.command("reproduce w2sd --part cifar,time-gap,guidance-gap --out report");
    let notes = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{notes}");
    for words in
        ["cifar is left out: it needs --data", "time-gap is left out", "guidance-gap is left out: it needs --mnist"]
    {
        assert!(notes.contains(words), "{notes}");
    }
    assert!(!place.path("report/w2sd.md").exists());
    place.fail(1, "reproduce w2sd --part moon --out report", &["--part", "`moon`", "analytic, cifar"]);
    place.fail(1, "reproduce w2sd --part cifar --data nowhere.zip --out report", &["nowhere.zip"]);
    place.write("run.toml", "learn_rate = 1");
    place.fail(1, "reproduce w2sd --config run.toml --out report", &["run.toml", "learn_rate"]);
    place.fail(2, "reproduce", &["w2sd"]);
}

#[test]
fn reflections_that_cannot_be_say_why() {
    let place = Place::new();
    let args = unet(&place);
    let weak = golden("trajectories/weak");
    let pair = format!("{args} --reflect-with {}", weak.display());
    let other = std::fs::read_to_string(weak.join("config.json")).unwrap();
    let weights = std::fs::read(weak.join(WEIGHTS)).unwrap();
    place.model("smaller", &other.replace("\"sample_size\": 16", "\"sample_size\": 8"), &weights);
    place.model("velocity", &other, &weights);
    place.write("velocity/scheduler_config.json", r#"{"prediction_type": "v_prediction"}"#);
    place.model("betas", &other, &weights);
    place.write("betas/scheduler_config.json", r#"{"beta_schedule": "scaled_linear"}"#);
    place.model("shorter", &other, &weights);
    place.write("shorter/scheduler_config.json", r#"{"num_train_timesteps": 500}"#);
    let with = |model: &str| format!("sample {args} --reflect-with {model}");
    let cases: [(i32, String, &[&str]); 19] = [
        (1, with("smaller"), &["sample_size", "[8, 8]", "[16, 16]"]),
        (1, with("velocity"), &["prediction_type", "v_prediction", "epsilon"]),
        (1, with("betas"), &["alpha_bar", "betas"]),
        (1, with("shorter"), &["num_train_timesteps", "500", "1000"]),
        (1, with("mnist-dit"), &["channel"]),
        (1, "sample --model mnist-unet --reflect-with mnist-dit".into(), &["_class_name", "EDMPrecond"]),
        (1, with("nowhere"), &["nowhere"]),
        (1, format!("sample {pair} --lambda 10"), &["lambda", "10 of 10", "at most 9"]),
        (1, format!("sample {pair} --eta 0.5"), &["eta"]),
        (1, format!("sample {pair} --sampler euler-a"), &["sampler", "deterministic"]),
        (1, format!("sample {pair} --sampler euler --reflect-levels released-code"), &["released-code", "DDIM"]),
        (1, format!("sample {pair} --reflect-query now"), &["reflect-query", "now"]),
        (1, format!("sample {pair} --reflect-levels shifted"), &["reflect-levels", "shifted"]),
        (1, format!("sample {pair} --reflect-repeat 0"), &["reflect-repeat"]),
        (1, format!("sample {pair} --weak-class 3"), &["weak-class", "no classes"]),
        (1, "sample --reflect --weak-class 10".into(), &["weak-class", "0 to 9"]),
        (1, format!("sample {args} --reflect"), &["--reflect-with"]),
        (1, format!("sample {args} --lambda 3"), &["--lambda", "--reflect"]),
        (1, "sample --reflect --weak-guidance NaN".into(), &["guidance"]),
    ];
    for (code, line, words) in cases {
        place.fail(code, &line, words);
    }
    // Strange but allowed: a word on what it amounts to.
    for (more, words) in [("--weak-guidance -12", "guidance at 17"), ("--weak-guidance 2.5", "no gap")] {
        let out = place.command(&format!("sample --model mnist-dit --n 1 --steps 2 {more}"));
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && message.contains(words), "{more}: {message}");
    }
}

// --- bad input ---------------------------------------------------------------------------------------------------

#[test]
fn options_out_of_range_are_named() {
    let place = Place::new();
    let args = unet(&place);
    let dit = format!("--model {} --steps 2", golden("dit/model").display());
    let cases: [(i32, String, &[&str]); 21] = [
        (1, format!("sample {args} --steps 0").replace("--steps 10", ""), &["--steps", "at least 1"]),
        (1, format!("sample {args} --n 0"), &["--n", "at least 1"]),
        (1, format!("sample {args} --batch 0"), &["--batch", "at least 1"]),
        (1, format!("sample {args} --n 99999999999 --batch 99999999999"), &["batch"]),
        (1, format!("sample {args} --size 0 16"), &["height"]),
        (1, format!("sample {args} --size 9999999 9999999"), &["height"]),
        (1, format!("sample {dit} --guidance NaN"), &["guidance"]),
        (1, format!("sample {dit} --guidance inf"), &["guidance"]),
        (1, format!("sample {dit} --guidance 2 --guidance-rescale 3"), &["rescale"]),
        (1, format!("sample {dit} --guidance 2 --guidance-interval 3 1"), &["interval"]),
        (1, format!("sample {dit} --classes 10"), &["--classes", "10", "0 to 9"]),
        (1, format!("sample {args} --classes 0"), &["--classes", "has no classes"]),
        (2, format!("sample {args} --classes x"), &["--classes"]),
        (2, format!("sample {args} --seed -1"), &["--seed", "-1"]),
        (2, format!("sample {args} --seed 99999999999999999999"), &["--seed"]),
        (1, format!("sample {args} --sampler leapfrog"), &["leapfrog", "ddim"]),
        (1, format!("sample {args} --device abacus"), &["abacus", "auto, cuda, wgpu, cpu, ptx"]),
        (1, format!("sample {args} --device nonsense"), &["nonsense", "cpu"]),
        (1, format!("sample {args} --eta NaN"), &["eta"]),
        (1, format!("sample {args} --sampler euler --churn NaN"), &["churn"]),
        (1, format!("sample {args} --threads 0"), &["--threads"]),
    ];
    for (code, line, words) in cases {
        place.fail(code, &line, words);
    }
    let steps = unet(&place).replace("10", "5000");
    place.fail(1, &format!("sample {steps}"), &["steps", "1000"]);
    place.fail(1, "bench nonsense", &["nonsense"]);
    place.fail(1, "bench unet --runs 0", &["--runs"]);
    place.fail(2, "draw", &["draw"]);
}

#[test]
fn outputs_that_cannot_be_written_are_named_before_the_work() {
    let place = Place::new();
    let args = unet(&place);
    place.fail(1, &format!("sample {args} --out missing/a.png"), &["missing/a.png"]);
    place.fail(1, &format!("sample {args} --save-samples missing/a.safetensors"), &["missing/a.safetensors"]);
    place.fail(1, &format!("sample {args} --save-latents missing/b.safetensors"), &["missing/b.safetensors"]);
}

#[test]
fn bad_schedulers_are_named() {
    let place = Place::new();
    let args = format!("sample --model {} --scheduler-config bad.json", golden("unet2d/model").display());
    place.fail(1, &args, &["bad.json"]);
    let cases = [
        (r#"{"prediction_type": "score"}"#, "prediction_type"),
        (r#"{"beta_schedule": "cubic"}"#, "beta_schedule"),
        (r#"{"beta_start": -1}"#, "beta"),
        (r#"{"beta_end": 2}"#, "beta"),
        (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        (r#"{"num_train_timesteps": 1e30}"#, "num_train_timesteps"),
        (r#"{"trained_betas": [0.1, "x"]}"#, "trained_betas"),
        (r#"{"timestep_spacing": 3}"#, "timestep_spacing"),
        ("[]", "bad.json"),
        ("{", "bad.json"),
    ];
    for (text, word) in cases {
        place.write("bad.json", text);
        place.fail(1, &args, &["bad.json", word]);
    }
}

#[test]
fn bad_tensors_of_inputs_are_named() {
    let place = Place::new();
    let args = unet(&place);
    let file = |name: &str, shape: &str, n: usize| {
        let header = format!("{{{}}}", entry(name, "F32", shape, 0, 4 * n as u64));
        place.write("bad.safetensors", safetensors(&header, &f32_bytes(vec![0.5; n])));
    };
    let line = format!("sample {args} --latents bad.safetensors");
    place.fail(1, &line, &["bad.safetensors"]);
    file("latents", "[1,3,16]", 48);
    place.fail(1, &line, &["bad.safetensors", "latents", "[1, 3, 16]"]);
    file("latents", "[1,4,4,4]", 64);
    place.fail(1, &line, &["latents", "[n, 3, height, width]", "[1, 4, 4, 4]"]);
    file("latents", "[0,3,4,4]", 0);
    place.fail(1, &line, &["latents"]);
    file("other", "[1,3,4,4]", 48);
    place.fail(1, &line, &["latents", "is missing"]);

    let dir = golden("unet2d/model");
    let line = format!("forward --model {} --inputs bad.safetensors --output out.safetensors", dir.display());
    place.fail(1, &line, &["sample", "is missing"]);
    file("sample", "[1,3,4]", 12);
    place.fail(1, &line, &["sample", "[1, 3, 4]"]);
    file("sample", "[1,1,4,4]", 16);
    place.fail(1, &line, &["sample", "1 channels"]);
    file("sample", "[1,3,4,4]", 48);
    place.fail(1, &line, &["timestep", "is missing"]);
    file("sample", "[0,3,4,4]", 0);
    place.fail(1, &line, &["batch"]);
    place.fail(1, &format!("{line} --dtype bf17"), &["--dtype", "f32, f16, bf16"]);
    let good = line.replace("bad.safetensors", &golden("unet2d/inputs.safetensors").display().to_string());
    place.fail(1, &format!("{good} --device cpu --dtype f16"), &["f16 on this cpu device", "take f32"]);
    place.fail(1, &format!("{good} --grad --device cpu --dtype f16"), &["f16 on this cpu device"]);
    place.fail(1, &format!("{line} --dtype int4"), &["--dtype", "int4"]);
    place.fail(2, &format!("{line} --recompute blocks"), &["--grad"]);
    place.fail(1, &format!("{good} --grad --recompute some"), &["recompute", "off, cheap, blocks"]);
    let inputs = golden("unet2d/inputs.safetensors");
    place.fail(
        1,
        &format!("forward --model {} --inputs {} --output no/out", dir.display(), inputs.display()),
        &["no/out"],
    );
}

#[test]
fn classes_of_inputs_are_checked() {
    let place = Place::new();
    let header = format!(
        "{{{},{},{}}}",
        entry("sample", "F32", "[1,4,8,8]", 0, 1024),
        entry("timestep", "F32", "[1]", 1024, 1028),
        entry("class_labels", "I64", "[1]", 1028, 1036)
    );
    let line =
        format!("forward --model {} --inputs in.safetensors --output out.safetensors", golden("dit/model").display());
    for (class, fits) in [(10i64, true), (11, false), (-1, false), (i64::MAX, false), (1 << 32, false)] {
        let data = [f32_bytes(vec![0.5; 257]), class.to_le_bytes().to_vec()].concat();
        place.write("in.safetensors", safetensors(&header, &data));
        if fits {
            place.run(&line);
        } else {
            place.fail(1, &line, &["class_labels", &class.to_string(), "0 to 10"]);
        }
    }
}

/// The header's text and the data of a safetensors file.
fn split(bytes: &[u8]) -> (serde_json::Map<String, serde_json::Value>, &[u8]) {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + n]).unwrap(), &bytes[8 + n..])
}

#[test]
fn bad_weights_are_named() {
    let place = Place::new();
    let config = std::fs::read_to_string(golden("unet2d/model/config.json")).unwrap();
    let good = std::fs::read(golden("unet2d/model").join(WEIGHTS)).unwrap();
    let try_weights = |bytes: &[u8], words: &[&str]| {
        place.model("bad", &config, bytes);
        let out = [&[WEIGHTS], words].concat();
        place.fail(1, "sample --model bad --steps 2 --n 1", &out);
        place.fail(1, "plan sample --model bad --steps 2 --n 1", &out);
    };
    try_weights(&[], &[]);
    try_weights(&good[..5], &[]);
    try_weights(&good[..100], &[]);
    try_weights(&good[..good.len() - 4], &[]);
    try_weights(&raw_safetensors(u64::MAX, b"{}", &[]), &[]);
    try_weights(&raw_safetensors(1 << 40, b"{}", &[]), &[]);
    try_weights(&raw_safetensors(2, b"[]", &[]), &[]);
    try_weights(b"\x80\x02}q\x00. a pickle, not a safetensors file", &[]);

    let spoil = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let (mut header, data) = split(&good);
        change(&mut header);
        safetensors(&serde_json::to_string(&header).unwrap(), data)
    };
    let name = "conv_in.weight";
    try_weights(&spoil(&|h| h[name]["data_offsets"] = serde_json::json!([0, 1u64 << 60])), &[name]);
    try_weights(&spoil(&|h| h[name]["data_offsets"] = serde_json::json!([8, 0])), &[name]);
    try_weights(
        &spoil(&|h| h[name]["shape"] = serde_json::json!([3, 16, 3, 3])),
        &[name, "[3, 16, 3, 3]", "[16, 3, 3, 3]"],
    );
    try_weights(&spoil(&|h| h[name]["shape"] = serde_json::json!([1u64 << 40, 1u64 << 40])), &[name]);
    try_weights(&spoil(&|h| h[name]["dtype"] = "F64".into()), &[name]);
    try_weights(&spoil(&|h| h[name]["dtype"] = "I32".into()), &[name, "I32"]);
    try_weights(&spoil(&|h| h[name]["dtype"] = "Q7".into()), &["Q7"]);
    let rename = |h: &mut serde_json::Map<String, serde_json::Value>| {
        let entry = h.remove(name).unwrap();
        h.insert("extra.weight".into(), entry);
    };
    try_weights(&spoil(&rename), &[name, "is missing"]);
    let (mut header, data) = split(&good);
    let end = data.len() as u64;
    header
        .insert("extra.bias".into(), serde_json::json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}));
    let more = safetensors(&serde_json::to_string(&header).unwrap(), &[data, &[0; 4]].concat());
    try_weights(&more, &["extra.bias", "is not part of"]);
}

#[test]
fn bad_configurations_are_named_and_allocate_nothing() {
    let place = Place::new();
    let config = std::fs::read_to_string(golden("unet2d/model/config.json")).unwrap();
    let good = std::fs::read(golden("unet2d/model").join(WEIGHTS)).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
    let original = json.clone();
    let cases = [
        ("_class_name", serde_json::json!("VQModel"), "VQModel"),
        ("_class_name", serde_json::json!(null), "_class_name"),
        ("down_block_types", serde_json::json!(["DownBlock2D", "CubeBlock2D"]), "CubeBlock2D"),
        ("down_block_types", serde_json::json!(["DownBlock2D"]), "down_block_types"),
        ("block_out_channels", serde_json::json!([16]), "down_block_types"),
        ("block_out_channels", serde_json::json!([15, 30]), "norm_num_groups"),
        ("block_out_channels", serde_json::json!([32768, 32768]), WEIGHTS),
        ("block_out_channels", serde_json::json!([1u64 << 62, 16]), "block_out_channels"),
        ("layers_per_block", serde_json::json!(1_000_000), "layers_per_block"),
        ("sample_size", serde_json::json!(1u64 << 50), "sample_size"),
        ("sample_size", serde_json::json!("big"), "sample_size"),
        ("sample_size", serde_json::json!(0), "sample_size"),
        ("in_channels", serde_json::json!(4), "conv_in.weight"),
        ("norm_eps", serde_json::json!(-1), "norm_eps"),
        ("num_class_embeds", serde_json::json!(1u64 << 40), "num_class_embeds"),
    ];
    for (field, value, word) in cases {
        json[field] = value;
        place.model("bad", &json.to_string(), &good);
        place.fail(1, "sample --model bad --steps 2 --n 1", &[word]);
        place.fail(1, "inspect bad", &[word]);
        json = original.clone();
    }
    for text in ["", "{", "[]", "null", "\u{0}"] {
        place.model("bad", text, &good);
        place.fail(1, "inspect bad", &["bad/config.json"]);
    }
    let deep = "[".repeat(100_000);
    place.model("bad", &deep, &good);
    place.fail(1, "inspect bad", &["bad/config.json"]);
    place.fail(1, "sample --model nowhere", &["nowhere", "mnist-unet"]);
    place.fail(1, "inspect nowhere", &["nowhere"]);
    std::fs::create_dir(place.path("empty")).unwrap();
    place.fail(1, "sample --model empty", &["empty/config.json"]);
    place.write("alone/config.json", &config);
    place.fail(1, "sample --model alone", &["alone", "safetensors"]);
}

#[test]
fn training_refuses_what_does_not_fit() {
    let place = Place::new();
    let dit = golden("dit/model");
    place.write("data/0/a.png", support::rgb_png([200, 10, 10]));
    place.write("data/1/b.png", support::rgb_png([10, 200, 10]));
    let line = |network: &Path, more: &str| {
        format!("train --network {} --data data --label-dropout 0 --out run {more}", network.display())
    };
    place.fail(1, &line(&dit, ""), &["data", "3 channels"]);
    place.fail(1, &line(Path::new("missing.json"), ""), &["missing.json"]);
    let unet = golden("unet2d/model");
    place.fail(1, &line(&unet, ""), &["data", "2×2"]);
    let config =
        std::fs::read_to_string(unet.join("config.json")).unwrap().replace("\"sample_size\": 16", "\"sample_size\": 2");
    let small = place.write("small.json", config);
    place.fail(1, &line(&small, ""), &["batch", "2 images"]);
    place.fail(1, &line(&small, "--batch 0"), &["batch"]);
    place.fail(1, &line(&small, "--batch 2 --steps 0"), &["steps"]);
    place.fail(1, &line(&small, "--batch 2 --lr NaN"), &["lr"]);
    place.fail(2, &line(&small, "--batch two"), &["--batch", "`two` is not a number"]);
    place.fail(1, &line(&small, "--recompute maybe"), &["recompute", "maybe"]);
    place.fail(1, &line(&small, "--save-dtype int8"), &["save_dtype", "int8"]);
    place.fail(1, "train --data data --out run", &["--network"]);
    place.fail(2, "train --data data", &["--out"]);
    place.fail(1, &line(&small, "--resume"), &["--resume", "run holds no run"]);
    place.write("run.toml", "batch_size = 3");
    place.fail(1, &line(&small, "--config run.toml"), &["run.toml", "batch_size", "is `batch` meant?"]);
    place.run(&line(&small, "--batch 2 --steps 2 --save-at 1"));
    assert!(place.path("run/step-1/config.json").is_file());
    place.run("sample --model run --steps 2 --n 1");
    place.fail(1, &line(&small, "--batch 2 --steps 2"), &["run holds a run, at step 2", "--resume"]);
    place.fail(1, &line(&small, "--batch 2 --steps 2 --resume --lr 0.5"), &["--resume", "lr is 0.5, was 0.001"]);
    place.run(&line(&small, "--batch 2 --steps 2 --save-at 1 --resume --log-every 1"));
    place.write("data/1/b.png", support::rgb_png([10, 200, 11]));
    place.fail(1, "train --out run --resume", &["data set has changed"]);
    place.fail(1, &format!("train --network {} --data nowhere --out other", small.display()), &["nowhere"]);
}

// --- eval --------------------------------------------------------------------------------------------------------

/// A safetensors file of `n` grey images of 28×28, dark with a bright bar that lies (class 0) or stands (class 1).
fn samples(place: &Place, name: &str, n: usize, first: usize, labelled: bool) {
    let pixel = |i: usize, y: usize, x: usize| {
        let (along, across) = if i.is_multiple_of(2) { (y, x) } else { (x, y) };
        if along / 4 == (i * 5 + first) % 7 && across > i % 11 { 0.8 } else { -0.9 }
    };
    let data = f32_bytes((0..n).flat_map(|i| (0..784).map(move |p| pixel(i, p / 28, p % 28))));
    let end = data.len() as u64;
    let labels: Vec<u8> = (0..n).flat_map(|i| (i as i64 % 2).to_le_bytes()).collect();
    let mut header = entry("sample", "F32", &format!("[{n},1,28,28]"), 0, end);
    if labelled {
        header += &format!(",{}", entry("class_labels", "I64", &format!("[{n}]"), end, end + labels.len() as u64));
    }
    let labels = if labelled { labels } else { vec![] };
    place.write(name, safetensors(&format!("{{{header}}}"), &[data, labels].concat()));
}

/// The same images as a data set: IDX with labels.
fn digits(place: &Place, n: usize) {
    let image = |i: usize| (0..784).map(move |p| ((p * (i + 3) / 7) % 251) as u8);
    place.write(
        "train-images-idx3-ubyte",
        support::idx(&[n as u32, 28, 28], &(0..n).flat_map(image).collect::<Vec<_>>()),
    );
    let labels: Vec<u8> = (0..n).map(|i| (i % 2) as u8).collect();
    place.write("train-labels-idx1-ubyte", support::idx(&[n as u32], &labels));
}

#[test]
fn eval_measures_samples_and_keeps_the_reference() {
    let place = Place::new();
    samples(&place, "samples.safetensors", 30, 0, true);
    digits(&place, 40);
    let line =
        "eval --samples samples.safetensors --reference train-images-idx3-ubyte --cache ref.safetensors --bootstrap 5";
    let first = place.json(&format!("{line} --json"));
    let value = |out: &serde_json::Value, name: &str| {
        let rows = out["metrics"].as_array().unwrap();
        rows.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("no {name}: {out}")).clone()
    };
    let fd = value(&first, "fd-classifier");
    assert!(fd["value"].as_f64().unwrap() > 0.1 && fd["interval"].is_array());
    for name in
        ["precision", "coverage", "is-classifier", "memorised", "class-share/9", "class-agreement", "fd-classifier/1"]
    {
        assert!(value(&first, name)["value"].is_number());
    }
    assert!(first["notes"].to_string().contains("singular"));
    // The cache alone says the same.
    let cached = place.json(&line.replace("--reference train-images-idx3-ubyte", "--json"));
    assert_eq!(cached["metrics"], first["metrics"]);
    let table = place.run(&format!("{line} --quiet --metrics fd,is"));
    assert!(table.contains("fd-classifier ") && table.contains(" to ") && table.lines().count() == 3, "{table}");
    // A model's own samples know their classes.
    let model = "eval --model mnist-unet --steps 2 --n 6 --batch 6 --cache ref.safetensors --bootstrap 0 --json";
    let drawn = place.json(model);
    assert_eq!((drawn["samples"].as_u64(), value(&drawn, "class-agreement")["interval"].is_null()), (Some(6), true));
}

/// A cache of other data, another network or another k is replaced, and the notes say so.
#[test]
fn eval_replaces_a_cache_that_does_not_fit() {
    let place = Place::new();
    samples(&place, "samples.safetensors", 30, 0, false);
    digits(&place, 40);
    let plain = "eval --samples samples.safetensors --reference train-images-idx3-ubyte --bootstrap 0";
    let line = format!("{plain} --cache ref.safetensors");
    place.run(&line);
    let notes = |line: &str, words: &[&str]| {
        let bytes = |place: &Place| std::fs::read(place.path("ref.safetensors")).unwrap();
        let before = bytes(&place);
        let out = place.command(line);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && words.iter().all(|w| text.contains(w)), "{line}: {text}");
        // What came of it is what comes without a cache, and the cache now fits.
        let uncached = line.replace(" --cache ref.safetensors", "");
        assert_eq!(out.stdout, place.command(&uncached).stdout, "{line}");
        assert_ne!(before, bytes(&place), "{line}");
        let again = place.command(line);
        assert!(!String::from_utf8_lossy(&again.stderr).contains("note: ref"), "{line}");
        assert_eq!(again.stdout, out.stdout, "{line}");
    };
    notes(&format!("{line} --k 3"), &["ref.safetensors", "distances to 5 neighbours"]);
    place.run("train-classifier --data train-images-idx3-ubyte --steps 1 --batch 8 --out net --quiet");
    notes(&format!("{line} --features net"), &["was made by the network", "it is replaced"]);
    digits(&place, 39);
    notes(&format!("{line} --features net"), &["other data", "it is replaced"]);
    let [three, five] = [3, 5].map(|k| place.json(&format!("{plain} --k {k} --metrics prdc --json")));
    assert_eq!((&three["k"], &five["k"]), (&3.into(), &5.into()));
    assert_ne!(three["metrics"], five["metrics"]);
}

#[test]
fn eval_refuses_what_it_cannot_measure() {
    let place = Place::new();
    samples(&place, "samples.safetensors", 8, 0, false);
    digits(&place, 40);
    let line = "eval --samples samples.safetensors --reference train-images-idx3-ubyte";
    place.fail(1, &format!("{line} --metrics per-class"), &["per-class", "no labels"]);
    place.fail(1, &format!("{line} --metrics fid"), &["fid", "prdc"]);
    place.fail(1, &format!("{line} --features nowhere"), &["nowhere"]);
    place.fail(1, &format!("{line} --bootstrap 1000000"), &["--bootstrap"]);
    place.fail(1, "eval --samples samples.safetensors --cache none.safetensors", &["none.safetensors"]);
    place.fail(2, "eval --samples samples.safetensors", &["--reference"]);
    place.fail(2, &format!("{line} --model mnist-unet"), &["--model"]);
    place.fail(1, &format!("{line} --k 0"), &["--k", "1 to"]);
    // Other files are never replaced by a cache, and without real images a cache of another network cannot be.
    let model = std::fs::read(golden("unet2d/inputs.safetensors")).unwrap();
    place.write("model.safetensors", &model);
    place.fail(1, &format!("{line} --cache model.safetensors"), &["model.safetensors", "reference statistics"]);
    assert_eq!(std::fs::read(place.path("model.safetensors")).unwrap(), model);
    place.run(&format!("{line} --cache ref.safetensors --metrics fd --bootstrap 0 --quiet"));
    place.run("train-classifier --data train-images-idx3-ubyte --steps 1 --batch 8 --out net --quiet");
    let other = "eval --samples samples.safetensors --cache ref.safetensors --features net";
    place.fail(1, other, &["ref.safetensors", "was made by the network", "--reference"]);
    // One image, NaN, wrong sizes.
    samples(&place, "one.safetensors", 1, 0, false);
    let few = line.replace("samples.", "one.");
    place.fail(1, &format!("{few} --metrics fd"), &["more than one image"]);
    let nan = safetensors(&format!("{{{}}}", entry("sample", "F32", "[2,1,1,1]", 0, 8)), &f32_bytes([f32::NAN, 0.0]));
    place.write("nan.safetensors", nan);
    place.fail(1, &line.replace("samples.", "nan."), &["NaN"]);
    let small = safetensors(&format!("{{{}}}", entry("sample", "F32", "[2,1,1,1]", 0, 8)), &f32_bytes([0.5, 0.0]));
    place.write("small.safetensors", small);
    place.fail(1, &line.replace("samples.", "small."), &["1×1×1", "28×28×1", "train-classifier"]);
    place.write("other.safetensors", safetensors(&format!("{{{}}}", entry("x", "F32", "[1]", 0, 4)), &[0; 4]));
    place.fail(1, &line.replace("samples.", "other."), &["sample", "missing"]);
}

#[test]
fn a_classifier_trains_and_measures() {
    let place = Place::new();
    digits(&place, 40);
    let line = "train-classifier --data train-images-idx3-ubyte --steps 3 --batch 8 --out classifier";
    let out = place.json(&format!("{line} --holdout 10 --json"));
    assert!((0.0..=1.0).contains(&out["accuracy"].as_f64().unwrap()));
    place.run(
        "eval --samples train-images-idx3-ubyte --reference train-images-idx3-ubyte --features classifier --quiet",
    );
    place.fail(1, &format!("{line} --holdout 33"), &["--batch", "7 images"]);
    place.fail(1, &format!("{line} --save-dtype i8"), &["save_dtype"]);
    std::fs::remove_file(place.path("train-labels-idx1-ubyte")).unwrap();
    place.fail(1, line, &["no labels"]);
}
