//! Feature networks against PyTorch, through the files that they are read from.
//!
//! `tests/golden/features/reference.py` made what is expected. Weights and images are a function of names and indices that
//! script and test share. Networks of full size, which the script writes with `--full`, are compared too where the
//! environment variable `LANGEVIN_FEATURES` names their folder.

use langevin::features::{Backbone, Extractor, FeatureNetwork, Features, Filter, Input};
use langevin::graph::Graph;
use langevin::methods::forward::{Backward, forward};
use langevin::nn::{Built, Dinov2Config, Import, InceptionConfig, Init, Parameter};
use langevin::ops::{Linear, Reshape};
use langevin::passes::autodiff::Recompute;
use langevin::schedule::Options;
use langevin::tensor::TensorType;
use langevin::weights::{Dtype, TensorSpec, Weights, WriteOptions, write};
use langevin::{Device, Error, Result};
use std::path::{Path, PathBuf};

/// A bound on ‖a − b‖ / ‖b‖.
const BOUND: f64 = 1e-5;
/// The same for networks of full size.
const FULL_BOUND: f64 = 1e-4;

type Tensors = Vec<(String, Vec<usize>)>;

/// Numbers of 32 bits: a hash of the name and of each index.
fn noise(name: &str, count: usize) -> impl Iterator<Item = u32> {
    let seed = name.bytes().fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (0..count as u32).map(move |i| {
        let x = i.wrapping_mul(0x9E37_79B9).wrapping_add(seed);
        let mix = |x: u32, (shift, factor): (u32, u32)| (x ^ (x >> shift)).wrapping_mul(factor);
        [(16, 0x85EB_CA6B), (13, 0xC2B2_AE35), (16, 1)].into_iter().fold(x, mix)
    })
}

fn weights(name: &str, shape: &[usize], out: &mut [f32]) {
    let leaf = name.rsplit('.').next().unwrap();
    let gain = if shape.len() == 4 { 6.0 } else { 3.0 };
    let spread = (gain / shape.iter().skip(1).product::<usize>() as f64).sqrt();
    for (out, bits) in out.iter_mut().zip(noise(name, shape.iter().product())) {
        let u = f64::from(bits) / f64::from(1u32 << 31) - 1.0;
        *out = match leaf {
            "running_var" => 1.0 + 0.5 * u,
            "lambda1" => 0.5 + 0.25 * u,
            "weight" if shape.len() == 1 => 1.0 + 0.25 * u,
            "weight" => u * spread,
            _ => 0.25 * u,
        } as f32;
    }
}

/// Bytes, NHWC: half slopes, half noise.
fn images(name: &str, [n, h, w, c]: [usize; 4]) -> Vec<u8> {
    let slope = |i: usize| {
        let (image, y, x, channel) = (i / (h * w * c), i / (w * c) % h, i / c % w, i % c);
        (x * (3 + image) + y * (5 + image) + channel * 40) % 256
    };
    noise(name, n * h * w * c).enumerate().map(|(i, bits)| (slope(i) / 2) as u8 + (bits >> 25) as u8).collect()
}

const SETS: [(&str, [usize; 4]); 3] = [("rgb", [2, 20, 24, 3]), ("grey", [1, 32, 32, 1]), ("large", [1, 320, 310, 3])];

/// The tensors of a narrow InceptionV3 as the FID tools save it.
fn inception() -> Tensors {
    let built = InceptionConfig { stem: 2, classes: 1008 }.build(1).unwrap();
    let tensors = |p: &Parameter| match p.name.strip_suffix("conv.bias") {
        Some(layer) => ["weight", "bias", "running_mean", "running_var"]
            .map(|leaf| (format!("{layer}bn.{leaf}"), p.shape.clone()))
            .to_vec(),
        None => vec![(p.name.clone(), p.shape.clone())],
    };
    built.parameters.iter().flat_map(tensors).collect()
}

/// The tensors of a narrow DINOv2 as transformers saves it.
fn dinov2(hidden: usize, grid: usize, swiglu: bool) -> Tensors {
    let inner = if swiglu { (hidden * 8 / 3).next_multiple_of(8) } else { 4 * hidden };
    let config = Dinov2Config {
        hidden,
        heads: hidden / 64,
        layers: 2,
        inner,
        swiglu,
        qkv_bias: !swiglu,
        patch: 14,
        size: 14 * grid,
        eps: 1e-6,
    };
    let built = config.build(1).unwrap();
    let own = built.parameters.iter().map(|p| (p.name.clone(), p.shape.clone()));
    let scales = (0..4).map(|i| format!("encoder.layer.{}.layer_scale{}.lambda1", i / 2, i % 2 + 1));
    let scales = scales.map(|name| (name, vec![hidden]));
    own.chain(scales).chain([("embeddings.mask_token".into(), vec![1, hidden])]).collect()
}

/// Writes tensors with the weights that their names give them.
fn save(folder: &Path, tensors: &Tensors) -> PathBuf {
    let path = folder.join("model.safetensors");
    let specs = tensors.iter().map(|(name, shape)| TensorSpec::new(name, Dtype::F32, shape.clone())).collect();
    let fill = |spec: &TensorSpec, out: &mut [f32]| {
        weights(&spec.name, &spec.shape, out);
        Ok(())
    };
    write(&path, specs, &WriteOptions::default(), fill).unwrap();
    path
}

fn extract(extractor: &mut Extractor, set: &str, shape: [usize; 4]) -> Features {
    extractor.features(&images(set, shape), shape, &mut |_| Ok(())).unwrap()
}

fn off(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Compares what `expected` holds under names that begin with `prefix`, and says how far it is off.
fn compare(what: &str, got: &Features, expected: &Weights, prefix: &str, bound: f64) {
    let features = expected.read_f32(&format!("{prefix}.features")).unwrap();
    let error = off(&got.data, &features);
    println!("{what}: features off by {error:.1e}");
    assert!(error <= bound, "{what}: features are off by {error:.1e}");
    if expected.info(&format!("{prefix}.logits")).is_some() {
        let error = off(got.logits.as_ref().unwrap(), &expected.read_f32(&format!("{prefix}.logits")).unwrap());
        println!("{what}: logits off by {error:.1e}");
        assert!(error <= bound, "{what}: logits are off by {error:.1e}");
    }
}

#[test]
fn networks_agree_with_pytorch() {
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/features/expected.safetensors");
    let expected = Weights::open(expected).unwrap();
    let cases =
        [("inception", inception()), ("dinov2", dinov2(128, 5, false)), ("dinov2_swiglu", dinov2(64, 16, true))];
    for (case, tensors) in cases {
        let folder = tempfile::tempdir().unwrap();
        let network = FeatureNetwork::open(save(folder.path(), &tensors)).unwrap();
        assert!(case.starts_with(network.name()), "{case}");
        let mut extractor = network.extractor(Device::Cpu, 2).unwrap();
        for (set, shape) in SETS {
            let got = extract(&mut extractor, set, shape);
            assert_eq!((got.n, got.dim, got.data.len()), (shape[0], network.dim(), shape[0] * network.dim()));
            compare(&format!("{case}, {set}"), &got, &expected, &format!("{case}.{set}"), BOUND);
        }
    }
    let full = std::env::var_os("LANGEVIN_FEATURES").into_iter().flat_map(|root| std::fs::read_dir(root).unwrap());
    for folder in full.map(|entry| entry.unwrap().path()) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let network = FeatureNetwork::open(folder.join("model")).unwrap();
        let mut extractor = network.extractor(Device::Cpu, 8).unwrap();
        let expected = Weights::open(folder.join("expected.safetensors")).unwrap();
        let (set, shape) = SETS[0];
        compare(&name, &extract(&mut extractor, set, shape), &expected, set, FULL_BOUND);
        let shape = [8, 32, 32, 3];
        let times = (0..6).map(|_| {
            let start = std::time::Instant::now();
            extract(&mut extractor, "time", shape);
            start.elapsed().as_secs_f64()
        });
        println!("{name}: {:.2} images a second, the best of 6", 8.0 / times.fold(f64::INFINITY, f64::min));
    }
}

#[test]
fn features_do_not_depend_on_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let network = FeatureNetwork::open(save(folder.path(), &dinov2(64, 4, false))).unwrap();
    let shape = [5, 9, 7, 3];
    let bytes = images("batches", shape);
    let run = |batch: usize| {
        let mut done = Vec::new();
        let mut extractor = network.extractor(Device::Cpu, batch).unwrap();
        let features = extractor.features(&bytes, shape, &mut |n| {
            done.push(n);
            Ok(())
        });
        (features.unwrap(), done)
    };
    let ((one, steps), (two, pairs)) = (run(1), run(2));
    assert_eq!((steps, pairs), (vec![1, 2, 3, 4, 5], vec![2, 4, 5]));
    assert_eq!((one.n, one.data.len(), &one.logits), (5, 5 * 64, &None));
    assert!(off(&two.data, &one.data) < 1e-6);
    let mut extractor = network.extractor(Device::Cpu, 2).unwrap();
    let none = extractor.features(&[], [0, 9, 7, 3], &mut |_| Ok(())).unwrap();
    assert_eq!((none.n, none.data.len()), (0, 0));
    let stopped = extractor.features(&bytes, shape, &mut |_| Err(Error::Cancelled));
    assert!(matches!(stopped, Err(Error::Cancelled)));
    for shape in [[5, 9, 7, 4], [4, 9, 7, 3], [5, 0, 7, 3], [usize::MAX, 9, 7, 3]] {
        let message = extractor.features(&bytes, shape, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains("features"), "{message}");
    }
    assert!(network.extractor(Device::Cpu, 0).is_err() && network.extractor(Device::Cpu, usize::MAX).is_err());
}

/// What a change of the tensors makes of opening them.
fn open_changed(mut tensors: Tensors, change: impl FnOnce(&mut Tensors)) -> String {
    let folder = tempfile::tempdir().unwrap();
    change(&mut tensors);
    let path = save(folder.path(), &tensors);
    let message = FeatureNetwork::open(&path).unwrap_err().to_string();
    assert!(message.contains("model.safetensors"), "{message}");
    message
}

fn reshape(tensors: &mut Tensors, name: &str, shape: &[usize]) {
    tensors.iter_mut().find(|(n, _)| n == name).unwrap().1 = shape.to_vec();
}

#[test]
fn bad_checkpoints_are_errors_that_name_the_tensor() {
    let lacks = |tensors: Tensors, name: &str| {
        let message = open_changed(tensors, |t| t.retain(|(n, _)| n != name));
        assert!(message.contains(name) && message.contains("missing"), "{message}");
    };
    lacks(inception(), "Mixed_6b.branch7x7dbl_3.bn.running_var");
    lacks(inception(), "fc.bias");
    lacks(dinov2(64, 4, false), "encoder.layer.1.layer_scale2.lambda1");
    lacks(dinov2(64, 4, true), "encoder.layer.1.mlp.weights_in.bias");
    lacks(dinov2(64, 4, false), "embeddings.position_embeddings");

    for tensors in [inception(), dinov2(64, 4, false)] {
        let message = open_changed(tensors, |t| t.push(("AuxLogits.fc.bias".into(), vec![1000])));
        assert!(message.contains("AuxLogits.fc.bias") && message.contains("not part"), "{message}");
    }
    let message = open_changed(inception(), |t| t.retain(|(n, _)| !n.starts_with("Conv2d_1a")));
    assert!(message.contains("neither"), "{message}");

    let shaped = |tensors: Tensors, name: &str, shape: &[usize], reason: &str| {
        let message = open_changed(tensors, |t| reshape(t, name, shape));
        assert!(message.contains(name) && message.contains(reason), "{message}");
    };
    shaped(inception(), "Conv2d_1a_3x3.conv.weight", &[3, 3, 3, 3], "3 outputs");
    shaped(inception(), "Conv2d_1a_3x3.conv.weight", &[64, 3, 3, 3], "64 outputs");
    shaped(inception(), "Conv2d_1a_3x3.conv.weight", &[2, 0, 3, 3], "above 0");
    shaped(inception(), "Mixed_7a.branch7x7x3_2.conv.weight", &[12, 12, 7, 1], "[12, 12, 1, 7]");
    shaped(inception(), "fc.weight", &[1000, 128], "torchvision");
    shaped(inception(), "Mixed_5b.branch1x1.bn.bias", &[5], "needs [4]");
    let patches = "embeddings.patch_embeddings.projection.weight";
    shaped(dinov2(64, 4, false), patches, &[64, 3, 13, 13], "13");
    shaped(dinov2(64, 4, false), patches, &[32, 3, 14, 14], "config.json");
    shaped(dinov2(64, 4, false), patches, &[1 << 16, 1, 1, 1], "65536");
    shaped(dinov2(64, 4, false), "embeddings.position_embeddings", &[1, 18, 64], "18 rows");
    shaped(dinov2(64, 4, false), "embeddings.cls_token", &[1, 64], "[1, 1, 64]");
    shaped(dinov2(64, 4, false), "encoder.layer.1.mlp.fc1.weight", &[64, 256], "[256, 64]");

    let variance = "Conv2d_3b_1x1.bn.running_var";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let spec = |name: &str, shape: &[usize], dtype| TensorSpec::new(name, dtype, shape.to_vec());
    let specs = |integer: &str| {
        let dtype = |name: &str| if name == integer { Dtype::I64 } else { Dtype::F32 };
        inception().iter().map(|(name, shape)| spec(name, shape, dtype(name))).collect::<Vec<_>>()
    };
    let fill = |spec: &TensorSpec, out: &mut [f32]| {
        out.fill(if spec.name == variance { -1.0 } else { 0.0 });
        Ok(())
    };
    write(&path, specs(""), &WriteOptions::default(), fill).unwrap();
    let network = FeatureNetwork::open(&path).unwrap();
    let message = network.extractor(Device::Cpu, 1).unwrap_err().to_string();
    assert!(message.contains(variance) && message.contains("variance"), "{message}");
    write(&path, specs("fc.bias"), &WriteOptions::default(), fill).unwrap();
    let message = FeatureNetwork::open(&path).unwrap_err().to_string();
    assert!(message.contains("fc.bias") && message.contains("I64"), "{message}");
}

#[test]
fn a_configuration_gives_heads_and_must_agree() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &dinov2(128, 4, false));
    let shape = [1, 16, 16, 3];
    let run = |text: &str| -> Result<Features> {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let network = FeatureNetwork::open(folder.path())?;
        Ok(extract(&mut network.extractor(Device::Cpu, 1)?, "heads", shape))
    };
    let two = run(r#"{"model_type": "dinov2", "hidden_size": 128, "num_attention_heads": 2}"#).unwrap();
    assert_eq!(run("{}").unwrap(), two);
    assert!(off(&run(r#"{"num_attention_heads": 4}"#).unwrap().data, &two.data) > 1e-4);
    assert!(off(&run(r#"{"layer_norm_eps": 0.1}"#).unwrap().data, &two.data) > 1e-4);
    let bad = [
        (r#"{"model_type": "vit"}"#, "model_type"),
        (r#"{"hidden_size": 384}"#, "hidden_size"),
        (r#"{"num_hidden_layers": 12}"#, "num_hidden_layers"),
        (r#"{"num_attention_heads": 3}"#, "num_attention_heads"),
        (r#"{"hidden_act": "relu"}"#, "hidden_act"),
        ("[]", "not a JSON object"),
    ];
    for (text, field) in bad {
        let message = run(text).unwrap_err().to_string();
        assert!(message.contains(field) && message.contains("config.json"), "{text}: {message}");
    }
}

#[test]
fn logits_have_the_bias_of_the_last_layer() {
    let folder = tempfile::tempdir().unwrap();
    let network = FeatureNetwork::open(save(folder.path(), &inception())).unwrap();
    let mut bias = vec![0.0; 1008];
    weights("fc.bias", &[1008], &mut bias);
    assert_eq!((network.classes(), network.logit_bias().unwrap()), (Some(1008), Some(bias.clone())));
    let got = extract(&mut network.extractor(Device::Cpu, 1).unwrap(), "rgb", [1, 20, 24, 3]);
    let mut matrix = vec![0.0; 1008 * 128];
    weights("fc.weight", &[1008, 128], &mut matrix);
    let product = |row: &[f32]| row.iter().zip(&got.data).map(|(w, x)| w * x).sum::<f32>();
    let expected: Vec<f32> = matrix.chunks(128).zip(&bias).map(|(row, b)| product(row) + b).collect();
    assert!(off(got.logits.as_ref().unwrap(), &expected) < 1e-5);
}

#[test]
fn networks_have_gradients() {
    let inception = InceptionConfig { stem: 2, classes: 1008 }.build(2).unwrap();
    let sizes = Dinov2Config {
        hidden: 64,
        heads: 1,
        layers: 2,
        inner: 96,
        swiglu: true,
        qkv_bias: true,
        patch: 14,
        size: 28,
        eps: 1e-6,
    };
    for built in [inception, sizes.build(2).unwrap()] {
        for recompute in [Recompute::Off, Recompute::Blocks] {
            let schedule = forward(
                &built,
                Some(Backward { recompute, ..Backward::default() }),
                Device::Cpu.target(),
                Options::default(),
            )
            .unwrap();
            assert!(schedule.buffers.find("out/d_sample").is_some());
        }
    }
}

/// A network of one's own: the features are x · W over all pixels of a 2×2 grey image.
#[derive(Debug)]
struct Own;

impl Backbone for Own {
    fn input(&self) -> Input {
        Input { height: 2, width: 2, channels: 1, filter: Filter::Bilinear, mean: [0.0; 3], std: [1.0; 3] }
    }

    fn build(&self, batch: usize) -> Result<Built> {
        let mut graph = Graph::new();
        let ty = TensorType::panels([4, 3]);
        let (x, w) = (graph.input("sample", TensorType::f32([batch, 2, 2, 1])), graph.parameter("w", ty.clone()));
        let x = graph.apply(Reshape(vec![batch, 4]), &[x])?;
        let y = graph.apply(Linear::default(), &[x, w])?;
        graph.output("features", y);
        let (name, shape, import, init) = ("w".to_string(), vec![3, 4], Import::Transpose, Init::Zeros);
        let parameters = vec![Parameter { name, shape, ty, import, init, trainable: true }];
        Ok(Built { graph, parameters, fixed: vec![], joined: vec![], ignored: vec![], output: "features" })
    }

    fn read(&self, _: &Parameter) -> Result<Vec<f32>> {
        Ok(vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    }
}

#[test]
fn any_network_gives_features() {
    let network = FeatureNetwork::new("own", Own).unwrap();
    assert_eq!((network.name(), network.dim(), network.classes()), ("own", 3, None));
    assert_eq!(network.logit_bias().unwrap(), None);
    let mut extractor = network.extractor(Device::Cpu, 4).unwrap();
    let got = extractor.features(&[255, 0, 51, 102], [1, 2, 2, 1], &mut |_| Ok(())).unwrap();
    assert!(off(&got.data, &[1.0, 0.4, 1.6]) < 1e-6, "{:?}", got.data);
    assert!(extractor.features(&[0; 12], [1, 2, 2, 3], &mut |_| Ok(())).is_err());
}
