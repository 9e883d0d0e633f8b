//! Low-rank adapters: every spelling of their files, against merged weights; training them; what is refused.

mod support;

use langevin::Model;
use langevin::files::write_atomic;
use langevin::nn::{InputSpec, adaptable_layers};
use langevin::weights::{Dtype, LoraFile, TensorSpec, Weights, WriteOptions, write};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A tensor's shape and numbers.
type Tensor = (Vec<usize>, Vec<f32>);

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Reproducible numbers in ±1.
fn noise(n: usize, seed: &str) -> Vec<f32> {
    let mut s = seed.bytes().fold(0xD1B54A32D192ED03u64, |s, b| (s ^ b as u64).wrapping_mul(0x9E3779B97F4A7C15)) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    save_noted(path, tensors, &[]);
}

fn save_noted(path: &Path, tensors: &BTreeMap<String, Tensor>, notes: &[(&str, String)]) {
    let metadata = notes.iter().map(|(key, text)| (key.to_string(), text.clone())).collect();
    let options = WriteOptions { metadata, ..WriteOptions::default() };
    let specs = tensors.iter().map(|(name, (shape, _))| TensorSpec::new(name, Dtype::F32, shape.clone())).collect();
    let put = |spec: &TensorSpec, out: &mut [f32]| {
        out.copy_from_slice(&tensors[&spec.name].1);
        Ok(())
    };
    write(path, specs, &options, put).unwrap();
}

/// A layer's low-rank pair: ranks 1 to 3, alpha 2.
struct Pair {
    layer: String,
    shape: Vec<usize>,
    rank: usize,
    down: Tensor,
    up: Tensor,
}

const ALPHA: f32 = 2.0;

fn pairs(model: &Model) -> Vec<Pair> {
    let [height, width] = model.network().sample_size().unwrap_or([8, 8]);
    let built = model.build(&InputSpec::new(1, height, width)).unwrap();
    let layers = adaptable_layers(&built.parameters);
    assert!(layers.len() > 5);
    let pair = |(i, layer): (usize, langevin::nn::AdaptableLayer)| {
        let rank = 1 + i % 3;
        let mut down = layer.shape.clone();
        down[0] = rank;
        let mut up = vec![1; layer.shape.len()];
        (up[0], up[1]) = (layer.shape[0], rank);
        let tensor = |shape: Vec<usize>, half: &str| {
            let n: usize = shape.iter().product();
            let fan_in = (n / shape[0]) as f32;
            let numbers = noise(n, &format!("{}{half}", layer.name));
            (shape, numbers.iter().map(|v| v * 0.5 / fan_in.sqrt()).collect())
        };
        let (down, up) = (tensor(down, "down"), tensor(up, "up"));
        Pair { layer: layer.name, shape: layer.shape, rank, down, up }
    };
    layers.into_iter().enumerate().map(pair).collect()
}

/// W + scale · alpha/rank · up · down, in f64.
fn merged(w: &[f32], p: &Pair, scale: f64) -> Vec<f32> {
    let (outputs, inner) = (p.shape[0], w.len() / p.shape[0]);
    let factor = scale * ALPHA as f64 / p.rank as f64;
    let at = |o: usize, i: usize| -> f64 {
        (0..p.rank).map(|r| p.up.1[o * p.rank + r] as f64 * p.down.1[r * inner + i] as f64).sum()
    };
    (0..outputs * inner).map(|j| (w[j] as f64 + factor * at(j / inner, j % inner)) as f32).collect()
}

/// The model with all of `pairs` merged into its weights.
fn save_merged(from: &Path, to: &Path, pairs: &[Pair], scale: f64) {
    let weights = Weights::open(from).unwrap();
    let tensor = |name: &str| {
        let (shape, numbers) = (weights.info(name).unwrap().shape.clone(), weights.read_f32(name).unwrap());
        match pairs.iter().find(|p| name == format!("{}.weight", p.layer)) {
            Some(pair) => (name.to_owned(), (shape, merged(&numbers, pair, scale))),
            None => (name.to_owned(), (shape, numbers)),
        }
    };
    std::fs::create_dir_all(to).unwrap();
    save(&to.join("diffusion_pytorch_model.safetensors"), &weights.names().map(tensor).collect());
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
}

/// How a file names a layer's down, up and alpha.
type Names = fn(&str) -> [String; 3];

const KOHYA: Names = |layer| {
    let layer = layer.replace('.', "_");
    ["lora_down.weight", "lora_up.weight", "alpha"].map(|part| format!("lora_unet_{layer}.{part}"))
};
const DIFFUSERS: Names = |layer| ["lora.down.weight", "lora.up.weight", "alpha"].map(|p| format!("unet.{layer}.{p}"));
const PEFT: Names =
    |layer| ["lora_A.weight", "lora_B.weight", "alpha"].map(|part| format!("base_model.model.{layer}.{part}"));

fn tensors(pairs: &[Pair], names: Names) -> BTreeMap<String, Tensor> {
    let of = |p: &Pair| names(&p.layer).into_iter().zip([p.down.clone(), p.up.clone(), (vec![], vec![ALPHA])]);
    pairs.iter().flat_map(of).collect()
}

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_langevin"))
            .current_dir(self.0.path())
            .args(["--quiet", "--threads", "1"])
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    fn run(&self, line: &str) {
        let out = self.command(line);
        assert!(out.status.success(), "{line}\n{}", String::from_utf8_lossy(&out.stderr));
    }

    fn fail(&self, line: &str, words: &[&str]) {
        let out = self.command(line);
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && !message.contains("panicked"), "{line}\n{message}");
        words.iter().for_each(|word| assert!(message.contains(word), "{line}\nlacks `{word}`: {message}"));
    }

    /// The network's answer to the golden inputs.
    fn forward(&self, case: &str, model: &Path, more: &str) -> Vec<f32> {
        let (model, inputs) = (model.display(), golden(case).join("inputs.safetensors"));
        self.run(&format!("forward --model {model} --inputs {} --output out.safetensors {more}", inputs.display()));
        let out = Weights::open(self.path("out.safetensors")).unwrap();
        let name = if out.info("sample").is_some() { "sample" } else { "denoised" };
        out.read_f32(name).unwrap()
    }
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| *a as f64 - *b as f64));
    difference / norm(&mut b.iter().map(|v| *v as f64))
}

/// On linear layers, 1×1 and 3×3 convolutions, EDM's interleaved q, k, v and scaled residuals; at several scales.
#[test]
fn an_adapter_is_what_merged_weights_are() {
    for case in ["unet2d", "unet2d_condition", "dit", "dit_moe", "edm_ddpmpp", "edm_ncsnpp"] {
        let place = Place::new();
        let base = golden(case).join("model");
        let pairs = pairs(&Model::open(&base).unwrap());
        save(&place.path("style.safetensors"), &tensors(&pairs, KOHYA));
        let plain = place.forward(case, &base, "");
        for scale in [1.0, -0.6] {
            save_merged(&base, &place.path("merged"), &pairs, scale);
            let expected = place.forward(case, &place.path("merged"), "");
            let got = place.forward(case, &base, &format!("--lora style.safetensors={scale}"));
            assert!(relative(&got, &expected) < 1e-5, "{case} at {scale}: {:.1e}", relative(&got, &expected));
            assert!(relative(&got, &plain) > 1e-2, "{case} at {scale}: the adapter changes nothing");
        }
        assert_eq!(place.forward(case, &base, "--lora style.safetensors=0"), plain, "{case}");
        // Two of them add up.
        save_merged(&base, &place.path("merged"), &pairs, 1.0);
        let expected = place.forward(case, &place.path("merged"), "");
        let two = place.forward(case, &base, "--lora style.safetensors=1.5 --lora style.safetensors=-0.5");
        assert!(relative(&two, &expected) < 1e-5, "{case}: {:.1e}", relative(&two, &expected));
    }
}

#[test]
fn every_spelling_is_read() {
    let (place, case) = (Place::new(), "unet2d_condition");
    let base = golden(case).join("model");
    let pairs = pairs(&Model::open(&base).unwrap());
    save(&place.path("kohya.safetensors"), &tensors(&pairs, KOHYA));
    let expected = place.forward(case, &base, "--lora kohya.safetensors=0.7");

    save(&place.path("diffusers.safetensors"), &tensors(&pairs, DIFFUSERS));
    assert_eq!(place.forward(case, &base, "--lora diffusers.safetensors=0.7"), expected);

    // PEFT keeps alpha in its configuration, and a pattern for layers that differ.
    let mut peft = tensors(&pairs, PEFT);
    peft.retain(|name, _| !name.ends_with(".alpha"));
    std::fs::create_dir_all(place.path("peft")).unwrap();
    save(&place.path("peft/adapter_model.safetensors"), &peft);
    let config = |more: &str| format!(r#"{{"peft_type": "LORA", "r": 2, {more}}}"#);
    let write_config = |text: String| write_atomic(place.path("peft/adapter_config.json"), text.as_bytes()).unwrap();
    write_config(config(r#""lora_alpha": 2"#));
    assert_eq!(place.forward(case, &base, "--lora peft=0.7"), expected);
    write_config(config(&format!(r#""lora_alpha": 9, "alpha_pattern": {{"{}": 2}}"#, pairs[0].layer)));
    let file = LoraFile::open(place.path("peft")).unwrap();
    let alpha = |layer: &str| file.pairs().iter().find(|p| p.adapts(layer)).unwrap().alpha;
    assert_eq!([alpha(&pairs[0].layer), alpha(&pairs[1].layer)], [2.0, 9.0]);

    // Newer diffusers write PEFT's configuration into the header.
    let mut noted = tensors(&pairs, DIFFUSERS);
    noted.retain(|name, _| !name.ends_with(".alpha"));
    let note =
        |alpha: f32| format!(r#"{{"unet.peft_type": "LORA", "unet.lora_alpha": {alpha}, "unet.alpha_pattern": null}}"#);
    save_noted(&place.path("noted.safetensors"), &noted, &[("lora_adapter_metadata", note(ALPHA))]);
    assert_eq!(place.forward(case, &base, "--lora noted.safetensors=0.7"), expected);
    save_noted(&place.path("noted.safetensors"), &noted, &[("lora_adapter_metadata", note(ALPHA / 2.0))]);
    assert_eq!(place.forward(case, &base, "--lora noted.safetensors=1.4"), expected);

    // Files of diffusers hold the text encoder's as well; it is left alone.
    let mut with_text = tensors(&pairs, KOHYA);
    let text = "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight";
    with_text.insert(text.into(), (vec![1, 2], vec![1.0; 2]));
    save(&place.path("text.safetensors"), &with_text);
    assert_eq!(LoraFile::open(place.path("text.safetensors")).unwrap().text_tensors(), 1);
    assert_eq!(place.forward(case, &base, "--lora text.safetensors=0.7"), expected);

    // Without any alpha it is the rank.
    let mut bare = tensors(&pairs, KOHYA);
    bare.retain(|name, _| !name.ends_with(".alpha"));
    save(&place.path("bare.safetensors"), &bare);
    let file = LoraFile::open(place.path("bare.safetensors")).unwrap();
    assert!(file.pairs().iter().all(|p| p.alpha == p.rank as f32));
}

#[test]
fn what_does_not_fit_is_named() {
    let (place, case) = (Place::new(), "unet2d_condition");
    let base = golden(case).join("model");
    let all = pairs(&Model::open(&base).unwrap());
    let good = tensors(&all[..3], KOHYA);
    let [down, up, _] = KOHYA(&all[1].layer);
    let line = format!(
        "forward --model {} --inputs {} --output out.safetensors --lora bad.safetensors",
        base.display(),
        golden(case).join("inputs.safetensors").display()
    );
    let fail = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), words: &[&str]| {
        let mut tensors = good.clone();
        change(&mut tensors);
        save(&place.path("bad.safetensors"), &tensors);
        place.fail(&line, words);
    };
    fail(
        &|t| {
            t.insert("lora_unet_no_such_layer.lora_down.weight".into(), (vec![1, 4], vec![0.0; 4]));
            t.insert("lora_unet_no_such_layer.lora_up.weight".into(), (vec![4, 1], vec![0.0; 4]));
            t.insert("lora_unet_nor_this.lora_down.weight".into(), (vec![1, 4], vec![0.0; 4]));
            t.insert("lora_unet_nor_this.lora_up.weight".into(), (vec![4, 1], vec![0.0; 4]));
        },
        &["no layers for", "no_such_layer", "nor_this"],
    );
    fail(
        &|t| {
            t.insert("a.hada_w1_a".into(), (vec![1], vec![0.0]));
            t.insert("b.dora_scale".into(), (vec![1], vec![0.0]));
        },
        &["no LoRA pair", "`a.hada_w1_a`", "`b.dora_scale`"],
    );
    fail(&|t| drop(t.remove(&up)), &[&down, "half of a LoRA pair"]);
    fail(&|t| t.get_mut(&down).unwrap().0.insert(0, 1), &[&down, "share no rank"]);
    fail(
        &|t| {
            let inner = t[&down].1.len();
            t.insert(down.clone(), (vec![1, inner + 1], vec![0.0; inner + 1]));
        },
        &[&down, "has shape"],
    );
    fail(&|t| t.clear(), &["holds no LoRA pair"]);
    let spelled_twice = DIFFUSERS(&all[0].layer);
    fail(
        &|t| {
            t.insert(spelled_twice[0].clone(), all[0].down.clone());
            t.insert(spelled_twice[1].clone(), all[0].up.clone());
        },
        &["is a second pair for"],
    );
    place.fail(&line.replace("bad.safetensors", "bad.safetensors=x"), &["--lora", "not a number"]);
    place.fail(&line.replace("bad.safetensors", "none.safetensors"), &["none.safetensors"]);
    for (json, word) in [
        (r#"{"peft_type": "LOHA", "lora_alpha": 1}"#, "peft_type"),
        (r#"{"peft_type": "LORA", "lora_alpha": 1, "use_dora": true}"#, "use_dora"),
        (r#"{"peft_type": "LORA"}"#, "lora_alpha"),
    ] {
        std::fs::create_dir_all(place.path("peft")).unwrap();
        std::fs::write(place.path("peft/adapter_config.json"), json).unwrap();
        place.fail(&line.replace("bad.safetensors", "peft"), &["adapter_config.json", word]);
    }
}

const NETWORK: &str = r#"{
    "_class_name": "DiTTransformer2DModel", "sample_size": 8, "patch_size": 2, "in_channels": 1, "num_layers": 2,
    "num_attention_heads": 2, "attention_head_dim": 8, "num_embeds_ada_norm": 2
}"#;

#[test]
fn an_adapter_is_trained_saved_resumed_and_used() {
    let place = Place::new();
    support::write_bars(place.0.path());
    std::fs::write(place.path("network.json"), NETWORK).unwrap();
    let data = "--data bars-images-idx3-ubyte --batch 4 --log-every 1 --ema-half-life 0";
    place.run(&format!("train --network network.json {data} --steps 20 --prediction flow_prediction --out base"));
    let lora = format!("--from base --lora-rank 3 --lora-alpha 6 {data} --lr 1e-2 --warmup 0");
    place.run(&format!("train {lora} --lora-targets attention,mlp --steps 1 --out narrow"));
    assert_eq!(LoraFile::open(place.path("narrow/model")).unwrap().pairs().len(), 2 * (4 + 2));
    place.run(&format!("train {lora} --lora-targets all --steps 60 --checkpoint-every 20 --keep 9 --out tuned"));

    // Its folder is PEFT's; it holds the adapter and nothing else, and so does the state.
    let file = LoraFile::open(place.path("tuned/model")).unwrap();
    assert!(file.pairs().len() > 2 * (4 + 2));
    assert!(file.pairs().iter().all(|p| (p.rank, p.alpha) == (3, 6.0)));
    let state = Weights::open(place.path("tuned/checkpoints/step-00000060/state.safetensors")).unwrap();
    assert!(state.names().all(|n| n.contains("lora_A") || n.contains("lora_B")), "{:?}", state.names().next());

    // It learned to predict what the base does.
    let scheduler = |run: &str| std::fs::read_to_string(place.path(run).join("model/scheduler_config.json")).unwrap();
    assert_eq!(scheduler("tuned"), scheduler("base"));

    // The base is as it was; what the adapter learned fits the data better.
    let log = |run: &str| langevin::run::read_log(&place.path(run)).unwrap();
    let mean = |losses: &[langevin::run::Entry]| losses.iter().map(|e| e.loss).sum::<f64>() / losses.len() as f64;
    let tuned = log("tuned");
    assert!(mean(&tuned[45..]) < 0.8 * mean(&tuned[..15]), "{} from {}", mean(&tuned[45..]), mean(&tuned[..15]));

    // The run's folder opens as the base with the adapter, whether by PEFT's file or by kohya's.
    let sample = |args: &str| {
        place.run(&format!("sample --n 2 --steps 4 --sampler euler {args} --save-samples s.safetensors --out s.png"));
        Weights::open(place.path("s.safetensors")).unwrap().read_f32("sample").unwrap()
    };
    let by_run = sample("--model tuned");
    assert_eq!(sample("--model base --lora tuned/model"), by_run);
    assert_eq!(sample("--model base --lora tuned/model/kohya.safetensors"), by_run);
    assert_eq!(sample("--model base --lora tuned/model=0"), sample("--model base"));
    assert_ne!(sample("--model base"), by_run);

    // A run that lost its last checkpoints ends at the same bits.
    let whole = std::fs::read(place.path("tuned/model/adapter_model.safetensors")).unwrap();
    for step in [40, 60] {
        std::fs::remove_dir_all(place.path(&format!("tuned/checkpoints/step-000000{step}"))).unwrap();
    }
    place.run("train --resume --out tuned");
    assert_eq!(std::fs::read(place.path("tuned/model/adapter_model.safetensors")).unwrap(), whole);

    // Another base would make another model of it.
    place.run(&format!("train --network network.json {data} --steps 20 --seed 1 --out other"));
    std::fs::rename(place.path("base/model"), place.path("kept")).unwrap();
    std::fs::rename(place.path("other/model"), place.path("base/model")).unwrap();
    place.fail("train --resume --out tuned", &["from", "not those that the adapter was trained on"]);
    std::fs::remove_dir_all(place.path("base/model")).unwrap();
    std::fs::rename(place.path("kept"), place.path("base/model")).unwrap();

    let refused = |more: &str, words: &[&str]| place.fail(&format!("train {data} --steps 2 --out x {more}"), words);
    refused("--network network.json --lora-rank 3", &["lora_rank", "from"]);
    refused("--from base --lora-rank 3 --lora-targets to_q,to_z", &["lora_targets", "to_z"]);
    refused("--from base --lora-rank 3 --lora-alpha -1", &["lora_alpha"]);
    refused("--from tuned", &["adapter"]);
}

/// W2SD's legs scale the one adapter that is in memory: the same as models of their own that are opened at these scales.
#[test]
fn legs_of_a_reflection_scale_one_adapter_each_its_own_way() {
    use langevin::Device;
    use langevin::diffusion::SamplerKind;
    use langevin::sampler::{Leg, Reflect, SampleRequest};

    let (place, base) = (Place::new(), golden("unet2d").join("model"));
    let open = || Model::open(&base).unwrap();
    let file = place.path("style.safetensors");
    save(&file, &tensors(&pairs(&open()), KOHYA));
    let at = |scale: f64| open().with_lora(&file, scale).unwrap();
    let (main, weak, strong) = (at(0.8), at(-1.5), at(1.5));
    let draw = |reflect: Reflect| {
        let request =
            SampleRequest { n: 2, batch: 2, steps: 4, sampler: SamplerKind::Ddim, ..SampleRequest::new(&main) };
        let request = SampleRequest { reflect: Some(reflect), ..request };
        let buffers = request.lower(&main, &Device::Cpu).unwrap().schedule.buffers.bytes();
        (request.prepare(&main, Device::Cpu).unwrap().run(&mut |_| Ok(())).unwrap().data, buffers)
    };
    let scaled = |scale| Leg { lora_scale: Some(scale), ..Leg::default() };
    let own = |model| Leg { model: Some(model), ..Leg::default() };
    let (got, shared) = draw(Reflect { strong: scaled(1.5), weak: scaled(-1.5), ..Reflect::default() });
    let (wanted, apart) = draw(Reflect { strong: own(&strong), weak: own(&weak), ..Reflect::default() });
    assert_eq!(got, wanted);
    assert!(3 * shared < 2 * apart, "{shared} bytes with one set of weights, {apart} with three");
    let (none, _) = draw(Reflect { weak: scaled(0.8), ..Reflect::default() });
    assert!(relative(&got, &none) > 1e-3, "the gap changes nothing");

    let line = format!("--model {} --lora style.safetensors=0.8 --steps 4 --n 2 --sampler ddim", base.display());
    place.run(&format!("sample {line} --weak-lora-scale -1.5 --strong-lora-scale 1.5 --save-samples got.safetensors"));
    assert_eq!(Weights::open(place.path("got.safetensors")).unwrap().read_f32("sample").unwrap(), got);
    let bare = line.replace("--lora style.safetensors=0.8", "");
    place.fail(&format!("sample {bare} --weak-lora-scale -1.5"), &["weak-lora-scale", "no LoRA", "--lora"]);
    place.fail(&format!("sample {line} --weak-lora-scale NaN"), &["lora scale"]);
}
