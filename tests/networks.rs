//! Networks beyond the golden cases: published sizes, conditions, training graphs, and what is refused.

use langevin::Device;
use langevin::graph::Origin;
use langevin::model::Model;
use langevin::nn::{Built, InputSpec, Network, Parameter};
use langevin::ops::Dropout;
use langevin::passes::fuse::{Purpose, fuse};
use langevin::passes::invariant::split;
use langevin::passes::verify::verify;
use langevin::sampler::SampleRequest;
use langevin::schedule::{Buffers, Options, Program, Schedule, Session, Step};
use langevin::tensor::DType;
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};
use std::collections::{HashMap, HashSet};

fn network(config: &Json) -> langevin::Result<Network> {
    Network::from_config(&config.to_string(), "model/config.json")
}

fn ddpm_cifar10() -> Json {
    json!({
        "_class_name": "UNet2DModel", "sample_size": 32, "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": null, "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "norm_eps": 1e-6
    })
}

fn stable_diffusion() -> Json {
    json!({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64})
}

fn sdxl() -> Json {
    json!({
        "_class_name": "UNet2DConditionModel", "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816
    })
}

fn edm_cifar10(label_dim: usize, augment_dim: usize) -> Json {
    json!({
        "_class_name": "EDMPrecond", "model_type": "SongUNet", "img_resolution": 32, "img_channels": 3,
        "label_dim": label_dim, "augment_dim": augment_dim, "channel_mult": [2, 2, 2], "dropout": 0.13
    })
}

#[test]
fn published_networks_have_their_published_sizes() {
    let cases = [
        ("DDPM, CIFAR-10", ddpm_cifar10(), 32, 35_746_307),
        ("Stable Diffusion 1.5", stable_diffusion(), 64, 859_520_964),
        ("Stable Diffusion XL", sdxl(), 128, 2_567_463_684),
        ("EDM, CIFAR-10", edm_cifar10(0, 0), 32, 55_732_739),
        ("EDM, CIFAR-10, augmented", edm_cifar10(0, 9), 32, 55_733_891),
        ("EDM, CIFAR-10, conditional and augmented", edm_cifar10(10, 9), 32, 55_735_299),
    ];
    for (name, config, size, expected) in cases {
        let built = network(&config).unwrap().build(&InputSpec::new(1, size, size)).unwrap();
        verify(&built.graph, "build").unwrap();
        assert_eq!(built.parameters.iter().map(Parameter::elements).sum::<usize>(), expected, "{name}");
        let names: HashSet<&str> = built.parameters.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names.len(), built.parameters.len(), "{name}: two parameters of one name");
    }
}

/// Runs a network; parameters and inputs are made by `fill(name, file shape)`.
fn run(built: &Built, fill: impl Fn(&str, &[usize]) -> Vec<f32>) -> Vec<f32> {
    let graph = &built.graph;
    let mut buffers = Buffers::new();
    for (value, name) in graph.inputs().chain(graph.parameters()) {
        buffers.declare(name, graph.ty(value).clone());
    }
    let output = buffers.declare(built.output, graph.ty(graph.find_output(built.output).unwrap()).clone());
    let ids = buffers.clone();
    let bind = |n: &str| ids.find(n);
    let program =
        Program::compile("test", graph, Device::Cpu.target(), &mut buffers, bind, Options { guard: 64 }).unwrap();
    let mut schedule = Schedule::new("test", buffers);
    let p = schedule.add(program);
    schedule.steps.push(Step::Run(p));
    let mut session = Session::new(Device::Cpu, schedule).unwrap().poisoned();
    for p in &built.parameters {
        let (id, numbers) = (ids.find(&p.name).unwrap(), fill(&p.name, &p.shape));
        session.fill(id, |stored| p.to_arena(&numbers, stored)).unwrap();
    }
    for (value, name) in graph.inputs() {
        let (data, id) = (fill(name, graph.shape(value)), ids.find(name).unwrap());
        if graph.ty(value).dtype == langevin::tensor::DType::I32 {
            session.write(id, &data.iter().map(|v| *v as i32).collect::<Vec<_>>()).unwrap();
        } else {
            session.write(id, &data).unwrap();
        }
    }
    session.run(&mut |_, _| Ok(())).unwrap();
    session.read::<f32>(output).unwrap()
}

/// Reproducible numbers that depend on the name, of about the size that keeps activations in range.
fn numbers(name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in: usize = shape[1..].iter().product();
    let scale = if name == "sample" { 1.0 } else { 1.5 / (fan_in as f32).sqrt() };
    let mut s = name.bytes().fold(0x9E37_79B9_7F4A_7C15u64, |a, b| (a ^ b as u64).wrapping_mul(0x100_0000_01B3)) | 1;
    (0..shape.iter().product())
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
        })
        .collect()
}

fn small_edm(label_dim: usize, augment_dim: usize) -> Json {
    json!({
        "_class_name": "EDMPrecond", "model_type": "SongUNet", "img_resolution": 8, "img_channels": 3, "model_channels": 8,
        "label_dim": label_dim, "augment_dim": augment_dim, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]
    })
}

/// Classes and augmentations add √n·W[:, class] + b and V·a to the noise embedding h; the first layer then sees L·(h +
/// e) + c = L·h + (c + L·e): an unconditional network with another bias there must agree, for every sample of the
/// batch.
#[test]
fn edm_adds_classes_and_augmentations_to_the_noise_embedding() {
    let (n, width, labels, augment) = (5, 8, [3usize, 5], [0.5f32, -1.0, 2.0]);
    let spec = InputSpec { augment: true, ..InputSpec::new(2, 8, 8) };
    let conditional = network(&small_edm(n, 3)).unwrap().build(&spec).unwrap();
    let values = |name: &str, shape: &[usize]| match name {
        "sigma" => vec![0.7; shape[0]],
        "class_labels" => labels.iter().map(|v| *v as f32).collect(),
        "augment_labels" => augment.repeat(shape[0]),
        _ => numbers(name, shape),
    };
    let got = run(&conditional, values);
    let (table, bias) = (numbers("model.map_label.weight", &[width, n]), numbers("model.map_label.bias", &[width]));
    let (v, layer) =
        (numbers("model.map_augment.weight", &[width, 3]), numbers("model.map_layer0.weight", &[32, width]));
    let plain = network(&small_edm(0, 0)).unwrap().build(&InputSpec::new(2, 8, 8)).unwrap();
    for (sample, label) in labels.iter().enumerate() {
        let class = |k: usize| if *label < n { (n as f32).sqrt() * table[k * n + label] } else { 0.0 };
        let shift = |k: usize| class(k) + bias[k] + (0..3).map(|j| v[k * 3 + j] * augment[j]).sum::<f32>();
        let shifted = run(&plain, |name, shape| {
            let mut data = values(name, shape);
            if name == "model.map_layer0.bias" {
                for (i, c) in data.iter_mut().enumerate() {
                    *c += (0..width).map(|k| layer[i * width + k] * shift(k)).sum::<f32>();
                }
            }
            data
        });
        let image = got.len() / 2;
        for (a, b) in got.iter().zip(&shifted).skip(sample * image).take(image) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "label {label}: {a} is not {b}");
        }
    }
}

fn dit_moe(experts: usize, chosen: usize, shared: usize) -> Json {
    json!({
        "_class_name": "DiTMoE", "input_size": 8, "hidden_size": 32, "depth": 3, "num_heads": 2, "num_experts": experts,
        "num_experts_per_tok": chosen, "n_shared_experts": shared
    })
}

/// FLOPs of the forward pass, and those of single ops.
fn flops(config: &Json, op: impl Fn(&str) -> bool) -> u64 {
    let built = network(config).unwrap().build(&InputSpec::new(5, 8, 8)).unwrap();
    let graph = &built.graph;
    graph.nodes().iter().filter(|n| op(n.op.name())).map(|n| n.op.cost(&graph.signature(n)).flops).sum()
}

#[test]
fn the_work_of_experts_is_that_of_the_chosen_ones() {
    let (layers, tokens, width, inner) = (3, 5 * 16, 32, 128);
    // Three matrices an expert.
    let expert = layers * tokens * 3 * 2 * width * inner;
    for (experts, chosen) in [(1, 1), (8, 1), (8, 2), (64, 2), (8, 8)] {
        assert_eq!(flops(&dit_moe(experts, chosen, 2), |op| op == "expert_linear"), chosen as u64 * expert);
    }
    // More experts to choose from cost what choosing costs: a column of the gate, and the route.
    let more = flops(&dit_moe(64, 2, 2), |_| true) - flops(&dit_moe(8, 2, 2), |_| true);
    let choosing = layers * tokens * 56 * 2 * width + layers * tokens * 56 * 11;
    assert_eq!(more, choosing);
    let (with, without) = (dit_moe(8, 2, 2), dit_moe(8, 2, 0));
    assert!(flops(&with, |op| op == "linear") > flops(&without, |op| op == "linear"));
    let names = |c: &Json| network(c).unwrap().build(&InputSpec::new(1, 8, 8)).unwrap().parameters;
    assert!(names(&with).iter().any(|p| p.name.contains("shared_experts")));
    assert!(!names(&without).iter().any(|p| p.name.contains("shared_experts")));
}

#[test]
fn a_routing_needs_experts() {
    use langevin::nn::Routing;
    let e = network(&ddpm_cifar10()).unwrap().with_routing(Routing::Bottom).unwrap_err();
    assert!(matches!(e, langevin::Error::Invalid { .. }) && e.to_string().contains("routing"), "{e}");
    let strong = network(&dit_moe(8, 2, 2)).unwrap();
    let weak = strong.with_routing(Routing::Bottom).unwrap();
    assert_ne!(weak, strong);
    assert_eq!(weak.with_routing(Routing::Top).unwrap(), strong);
}

/// Keys and values of all 16 transformer blocks of Stable Diffusion depend on the text alone.
#[test]
fn keys_and_values_of_a_text_are_made_once() {
    let built = network(&stable_diffusion()).unwrap().build(&InputSpec::new(1, 64, 64)).unwrap();
    let (fused, _) = fuse(&built.graph, Purpose::Inference).unwrap();
    let (before, turn) = split(&fused, |input| input != "encoder_hidden_states", |i| format!("kept {i}")).unwrap();
    let before = before.unwrap();
    assert_eq!((before.nodes().len(), before.outputs().len()), (32, 32));
    assert_eq!(before.nodes().len() + turn.nodes().len(), fused.nodes().len());
    assert!(turn.inputs().all(|(_, name)| name.as_ref() != "encoder_hidden_states"));
}

/// A UNet whose layers of the time have whole steps of columns but for one, so that joined there is room between them.
fn unet(channels: [usize; 2]) -> Json {
    json!({
        "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": channels,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 32
    })
}

/// A model's folder with the numbers of [`numbers`].
fn folder(config: &Json) -> tempfile::TempDir {
    let built = network(config).unwrap().build(&InputSpec::new(1, 8, 8)).unwrap();
    let bytes = |p: &Parameter| numbers(&p.name, &p.shape).iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let all: Vec<_> = built.parameters.iter().map(|p| (p, bytes(p))).collect();
    let view = |p: &Parameter, data| TensorView::new(Dtype::F32, p.shape.clone(), data).unwrap();
    let tensors = all.iter().map(|(p, data)| (p.name.as_str(), view(p, data)));
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("config.json"), config.to_string()).unwrap();
    let file = place.path().join("diffusion_pytorch_model.safetensors");
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    place
}

/// What blocks add of the time comes out of one launch on a GPU; parameters are read as ever.
#[test]
fn layers_of_one_embedding_are_joined_on_cuda() {
    let target = Device::ptx((9, 0)).target();
    let stored = |config: &Json, size: usize, dtype: DType| {
        let built = network(config).unwrap().build(&InputSpec::new(1, size, size)).unwrap();
        built.for_inference(dtype, &target).unwrap()
    };
    let columns = |built: &Built| built.joined.iter().map(|j| (j.parts.len(), j.ty.cols())).collect::<Vec<_>>();
    // 22 blocks; those of 320 columns have 384.
    let sd = stored(&stable_diffusion(), 64, DType::Bf16);
    assert_eq!(columns(&sd), vec![(22, 5 * 384 + 5 * 640 + 12 * 1280); 2]);
    let shape = sd.joined[0].ty.shape.clone();
    let products = |built: &Built| built.graph.nodes().iter().filter(|n| n.op.name() == "linear").count();
    let plain = network(&stable_diffusion()).unwrap().build(&InputSpec::new(1, 64, 64)).unwrap();
    assert_eq!((shape[0], products(&plain) - products(&sd)), (1280, 21));
    // Too much room would be left between them; scales and shifts are not read where they lie.
    assert_eq!(columns(&stored(&unet([16, 32]), 8, DType::F32)), []);
    let mut scaled = unet([64, 128]);
    scaled["resnet_time_scale_shift"] = json!("scale_shift");
    assert_eq!(columns(&stored(&scaled, 8, DType::F32)), []);
    assert_eq!(columns(&stored(&edm_cifar10(0, 0), 32, DType::Bf16)), vec![(33, 33 * 256); 2]);

    let (place, other) = (folder(&unet([64, 128])), folder(&unet([128, 128])));
    let [model, guide] = [&place, &other].map(|place| Model::open(place.path()).unwrap());
    let draw = |device: Device, dtype| {
        let latents = Some(numbers("sample", &[2 * 8 * 8 * 4]));
        let request = SampleRequest { n: 2, batch: 2, steps: 2, latents, dtype, ..SampleRequest::new(&model) };
        let request = SampleRequest { guide: Some(&guide), guidance_scale: 1.5, ..request };
        request.prepare(&model, device).unwrap().run(&mut |_| Ok(())).unwrap().data
    };
    // Another model, whose weights are its own, guides; it is joined too.
    let expected = draw(Device::Cpu, DType::F32);
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::Bf16, 5e-2)] {
        let got = draw(Device::ptx((8, 0)), dtype);
        let off = norm(&mut got.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
        assert!(off <= bound, "{dtype}: off by {off:.1e}");
    }
}

#[test]
fn training_graphs_drop_with_a_stream_for_each_layer() {
    let network = network(&edm_cifar10(10, 9)).unwrap();
    let spec = InputSpec::new(2, 32, 32);
    let dropouts = |built: &Built| -> Vec<u32> {
        built.graph.nodes().iter().filter_map(|n| n.op.downcast::<Dropout>().map(|d| d.stream)).collect()
    };
    assert!(dropouts(&network.build(&spec).unwrap()).is_empty());
    let built = network.build(&spec.training()).unwrap();
    let streams = dropouts(&built);
    // 14 blocks on the way down, 19 on the way up.
    assert_eq!((streams.len(), streams.iter().collect::<HashSet<_>>().len()), (33, 33));
    let inputs: HashMap<&str, &[usize]> =
        built.graph.inputs().map(|(v, n)| (n.as_ref(), built.graph.shape(v))).collect();
    assert_eq!((inputs["seeds"], inputs["draw"], inputs["class_labels"]), (&[2, 2][..], &[1][..], &[2][..]));
    assert!(!inputs.contains_key("augment_labels"));
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let refused = |config: Json, spec: InputSpec, what: &str| {
        let message = network(&config).unwrap().build(&spec).expect_err(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    refused(ddpm_cifar10(), InputSpec::new(1, 20, 32), "height");
    refused(ddpm_cifar10(), InputSpec::new(0, 32, 32), "batch");
    refused(ddpm_cifar10(), InputSpec::new(1, 32, usize::MAX), "width");
    refused(ddpm_cifar10(), InputSpec::new(1 << 20, 1 << 20, 1 << 20), "too much");
    refused(edm_cifar10(0, 0), InputSpec::new(1, 32, 30), "width");
    refused(json!({"_class_name": "DiTTransformer2DModel"}), InputSpec::new(1, 31, 32), "patch");
    refused(json!({"_class_name": "DiTTransformer2DModel"}), InputSpec::new(1, 1 << 11, 1 << 11), "patches");
    refused(dit_moe(8, 2, 2), InputSpec::new(1, 8, 9), "width");
    refused(dit_moe(256, 256, 2), InputSpec::new(1 << 20, 8, 8), "too much");
    refused(stable_diffusion(), InputSpec { tokens: 0, ..InputSpec::new(1, 64, 64) }, "tokens");
    refused(sdxl(), InputSpec { time_ids: 11, ..InputSpec::new(1, 64, 64) }, "time_ids");
}

#[test]
fn parameters_start_as_their_class_prescribes() {
    use langevin::nn::Init;
    let built = network(&json!({"_class_name": "DiTTransformer2DModel", "num_layers": 1})).unwrap();
    let built = built.build(&InputSpec::new(1, 32, 32)).unwrap();
    let init = |name: &str| built.parameters.iter().find(|p| p.name == name).unwrap().init;
    assert_eq!(init("proj_out_2.weight"), Init::Zeros);
    assert_eq!(init("transformer_blocks.0.norm1.linear.bias"), Init::Zeros);
    assert_eq!(init("transformer_blocks.0.attn1.to_q.weight"), Init::Uniform(1.0 / 1152f32.sqrt()));
    let constants = built.graph.values().iter().filter(|v| matches!(v.origin, Origin::Constant(_))).count();
    assert_eq!((constants, built.ignored), (1, vec!["pos_embed.pos_embed".to_string()]));
}

/// A value of any JSON type, sane or not.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        (-3i64..40).prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        "[a-zA-Z2]{0,12}".prop_map(Json::from),
        prop::sample::select(vec![
            "AttnDownBlock2D",
            "CrossAttnUpBlock2D",
            "fourier",
            "learned",
            "residual",
            "timestep",
            "gelu"
        ])
        .prop_map(Json::from),
    ];
    prop_oneof![leaf.clone(), prop::collection::vec(leaf, 0..6).prop_map(Json::from)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever stands in a field: an error, or a graph that verifies; never a panic.
    #[test]
    fn no_configuration_panics(which in 0usize..5, field in any::<prop::sample::Index>(), value in any_json()) {
        let case = ["unet2d", "unet2d_condition", "dit", "dit_moe", "edm_ncsnpp"][which];
        let path = format!("{}/tests/golden/{case}/model/config.json", env!("CARGO_MANIFEST_DIR"));
        let mut config: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let fields = config.as_object_mut().unwrap();
        let key = field.get(&fields.keys().cloned().collect::<Vec<_>>()).clone();
        fields.insert(key.clone(), value);
        let built = network(&config).and_then(|n| n.build(&InputSpec::new(2, 16, 16).training()));
        if let Ok(built) = built {
            prop_assert!(verify(&built.graph, "build").is_ok(), "{key}");
        }
    }
}
