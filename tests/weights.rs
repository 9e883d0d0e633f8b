//! Model files and folders: reading, writing, and each way in which they can be wrong.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use langevin::weights::{Dtype, Header, TensorInfo, TensorSpec, Weights, WriteOptions, Writer, write};
use langevin::{Error, Result};
use proptest::prelude::*;
use support::*;
use tempfile::{TempDir, tempdir};

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec::new(name, dtype, shape)
}

/// Values that tell tensors apart and survive every dtype.
fn values(spec: &TensorSpec) -> Vec<f32> {
    let base = spec.name.bytes().map(f32::from).sum::<f32>() % 50.0;
    (0..spec.shape.iter().product()).map(|i| base - (i % 7) as f32).collect()
}

fn fill(spec: &TensorSpec, out: &mut [f32]) -> Result<()> {
    out.copy_from_slice(&values(spec));
    Ok(())
}

fn sharded(max_shard_bytes: u64) -> WriteOptions {
    WriteOptions { max_shard_bytes, ..Default::default() }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Saves a one-tensor file whose value tells the file.
fn save(path: impl AsRef<Path>, name: &str, value: f32) {
    write(path, vec![spec(name, Dtype::F32, &[1])], &WriteOptions::default(), |_, out| {
        out[0] = value;
        Ok(())
    })
    .unwrap();
}

fn message(result: Result<Weights>) -> String {
    result.map(|w| w.path().display().to_string()).unwrap_err().to_string()
}

fn folder_with(contents: &[(&str, &str)]) -> TempDir {
    let dir = tempdir().unwrap();
    for (name, text) in contents {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn what_is_written_is_read_back_in_every_dtype() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let specs = vec![
        spec("odd.half", Dtype::F16, &[3]),
        spec("brain", Dtype::BF16, &[5, 1]),
        spec("single", Dtype::F32, &[2, 3, 1, 1]),
        spec("count", Dtype::I64, &[]),
        spec("none", Dtype::F32, &[0, 4]),
    ];
    write(&path, specs.clone(), &WriteOptions::default(), fill).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["brain", "count", "none", "odd.half", "single"]);
    assert_eq!(weights.byte_count(), 6 + 10 + 24 + 8);
    assert_eq!(weights.metadata()["format"], "pt");
    for s in &specs {
        let TensorInfo { dtype, shape } = weights.info(&s.name).unwrap().clone();
        assert_eq!((dtype, &shape), (s.dtype, &s.shape));
        assert_eq!(weights.read_f32(&s.name).unwrap(), values(s), "{}", s.name);
    }
    assert_eq!(files(dir.path()), ["m.safetensors"]);
}

#[test]
fn the_reference_reader_reads_our_files_and_we_read_its() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let specs = vec![spec("h", Dtype::F16, &[3]), spec("f", Dtype::F32, &[2, 2]), spec("i", Dtype::I64, &[1])];
    write(&path, specs, &WriteOptions::default(), fill).unwrap();
    let bytes = fs::read(&path).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let f = reference.tensor("f").unwrap();
    let expected: Vec<u8> = values(&spec("f", Dtype::F32, &[2, 2])).iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!((f.dtype(), f.shape(), f.data()), (safetensors::Dtype::F32, &[2, 2][..], &expected[..]));
    assert_eq!(reference.tensor("h").unwrap().dtype(), safetensors::Dtype::F16);

    let data = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 1], &data).unwrap();
    fs::write(&path, safetensors::serialize([("t", &view)], None).unwrap()).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.info("t").unwrap().shape, [2, 1]);
    assert_eq!(weights.read_f32("t").unwrap(), [1.5, -2.0]);
}

#[test]
fn every_tensor_starts_aligned() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let specs = vec![spec("h", Dtype::F16, &[3]), spec("f", Dtype::F32, &[3]), spec("i", Dtype::I64, &[1])];
    write(&path, specs, &WriteOptions::default(), fill).unwrap();
    let header = Header::parse(&path, &fs::read(&path).unwrap()).unwrap();
    for (name, (info, range)) in &header.tensors {
        assert!(range.start.is_multiple_of(info.dtype.bitsize() / 8), "{name} at {}", range.start);
    }
}

#[test]
fn unaligned_tensors_are_read_correctly() {
    let json = format!("{{{},{}}}", entry("b", "BOOL", "[3]", 0, 3), entry("w", "F32", "[2]", 3, 11));
    let data = [&[1, 0, 2][..], &1.25f32.to_le_bytes(), &(-7.0f32).to_le_bytes()].concat();
    let weights = Weights::from_bytes(safetensors(&json, &data).leak()).unwrap();
    assert_eq!(weights.read_f32("b").unwrap(), [1.0, 0.0, 1.0]);
    assert_eq!(weights.read_f32("w").unwrap(), [1.25, -7.0]);
    assert_eq!(weights.bytes("b").unwrap(), [1, 0, 2]);
}

#[test]
fn every_dtype_is_read_as_f32_and_integers_as_i64() {
    let cases: Vec<(&str, Vec<u8>, [f64; 2])> = vec![
        ("BOOL", vec![1, 0], [1.0, 0.0]),
        ("U8", vec![200, 1], [200.0, 1.0]),
        ("I8", vec![200, 1], [-56.0, 1.0]),
        ("U16", [60000u16, 1].map(u16::to_le_bytes).concat(), [60000.0, 1.0]),
        ("I16", [-300i16, 1].map(i16::to_le_bytes).concat(), [-300.0, 1.0]),
        ("U32", [1u32 << 31, 1].map(u32::to_le_bytes).concat(), [2147483648.0, 1.0]),
        ("I32", [-70000i32, 1].map(i32::to_le_bytes).concat(), [-70000.0, 1.0]),
        ("U64", [1u64 << 40, 1].map(u64::to_le_bytes).concat(), [1099511627776.0, 1.0]),
        ("I64", [-(1i64 << 40), 1].map(i64::to_le_bytes).concat(), [-1099511627776.0, 1.0]),
        ("F16", [0.5, -2.0].map(|v| f16::from_f32(v).to_le_bytes()).concat(), [0.5, -2.0]),
        ("BF16", [0.5, -2.0].map(|v| bf16::from_f32(v).to_le_bytes()).concat(), [0.5, -2.0]),
        ("F32", [0.1f32, -2.0].map(f32::to_le_bytes).concat(), [0.1f32 as f64, -2.0]),
        ("F64", [0.1f64, -2.0].map(f64::to_le_bytes).concat(), [0.1f32 as f64, -2.0]),
        ("F8_E4M3", vec![0x38, 0xc0], [1.0, -2.0]),
        ("F8_E5M2", vec![0x3c, 0xc0], [1.0, -2.0]),
    ];
    for (dtype, data, expected) in cases {
        let json = format!("{{{}}}", entry("t", dtype, "[2]", 0, data.len() as u64));
        let weights = Weights::from_bytes(safetensors(&json, &data).leak()).unwrap();
        let read: Vec<f64> = weights.read_f32("t").unwrap().into_iter().map(f64::from).collect();
        assert_eq!(read, expected, "{dtype}");
        match weights.read_i64("t") {
            Ok(read) => assert_eq!(read, expected.map(|v| v as i64), "{dtype}"),
            Err(e) => {
                assert!(dtype.contains('F'), "{dtype}: {e}");
                assert!(e.to_string().contains(&format!("tensor `t`: is {dtype}")), "{e}");
            }
        }
    }
}

#[test]
fn dtypes_that_are_no_plain_numbers_are_opened_but_not_read() {
    let json = format!("{{{},{}}}", entry("c", "C64", "[1]", 0, 8), entry("f", "F32", "[1]", 8, 12));
    let weights = Weights::from_bytes(safetensors(&json, &[0; 12]).leak()).unwrap();
    assert_eq!(weights.read_f32("f").unwrap(), [0.0]);
    assert!(weights.read_f32("c").unwrap_err().to_string().contains("tensor `c`: is C64, which cannot be read"));
}

#[test]
fn large_integers_are_exact_and_too_large_ones_are_errors() {
    let exact = (1i64 << 53) + 1;
    let json = format!("{{{},{}}}", entry("i", "I64", "[1]", 0, 8), entry("u", "U64", "[1]", 8, 16));
    let data = [exact.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
    let weights = Weights::from_bytes(safetensors(&json, &data).leak()).unwrap();
    assert_eq!(weights.read_i64("i").unwrap(), [exact]);
    assert!(weights.read_i64("u").unwrap_err().to_string().contains("18446744073709551615"));
}

#[test]
fn wrong_names_and_lengths_are_errors_that_say_so() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    save(&path, "a", 1.0);
    let weights = Weights::open(&path).unwrap();
    let missing = weights.read_f32("b").unwrap_err().to_string();
    assert!(missing.contains("m.safetensors") && missing.contains("tensor `b`: is not in the file"), "{missing}");
    assert!(weights.info("b").is_none());
    let short = weights.read_f32_into("a", &mut []).unwrap_err().to_string();
    assert!(short.contains("shape [1] has 1 elements, but 0 are wanted"), "{short}");
    weights.release("b");
}

#[test]
fn released_tensors_can_be_read_again() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let specs: Vec<_> = ["a", "b", "c"].map(|n| spec(n, Dtype::F32, &[300_001])).into();
    write(&path, specs.clone(), &WriteOptions::default(), fill).unwrap();
    let weights = Weights::open(&path).unwrap();
    for s in &specs {
        assert_eq!(weights.read_f32(&s.name).unwrap(), values(s));
        weights.release(&s.name);
        assert_eq!(weights.read_f32(&s.name).unwrap(), values(s));
    }
}

/// Resident pages of the map of `path`, from the kernel's own account.
#[cfg(target_os = "linux")]
fn resident_kib(path: &Path) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
    let rss = lines.find(|line| line.starts_with("Rss:")).unwrap();
    rss.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn releasing_gives_the_memory_back() {
    let dir = tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("m.safetensors");
    let specs: Vec<_> = ["a", "b"].map(|n| spec(n, Dtype::F32, &[1 << 20])).into();
    write(&path, specs, &WriteOptions::default(), fill).unwrap();
    let weights = Weights::open(&path).unwrap();
    weights.read_f32("a").unwrap();
    weights.read_f32("b").unwrap();
    assert!(resident_kib(&path) >= 8 * 1024 - 256, "{}", resident_kib(&path));
    weights.release("a");
    let left = resident_kib(&path);
    assert!((4 * 1024 - 256..=4 * 1024 + 256).contains(&left), "{left} KiB are resident, where 4 MiB belong to `b`");
}

#[test]
fn folders_are_searched_for_the_usual_names_best_first() {
    let order = [
        "other.safetensors",
        "model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
    ];
    let dir = tempdir().unwrap();
    for (value, name) in order.iter().enumerate() {
        save(dir.path().join(name), "a", value as f32);
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.read_f32("a").unwrap(), [value as f32], "{name}");
        assert!(weights.path().ends_with(name));
    }
}

#[test]
fn folders_without_one_clear_model_are_errors() {
    let dir = tempdir().unwrap();
    let text = message(Weights::open(dir.path()));
    assert!(text.contains("no weights here") && text.contains("diffusion_pytorch_model.safetensors"), "{text}");
    fs::write(dir.path().join("diffusion_pytorch_model.bin"), "x").unwrap();
    let text = message(Weights::open(dir.path()));
    assert!(text.contains("diffusion_pytorch_model.bin") && text.contains("convert it to safetensors"), "{text}");
    save(dir.path().join("x.safetensors"), "a", 1.0);
    save(dir.path().join("y.safetensors"), "a", 1.0);
    let text = message(Weights::open(dir.path()));
    assert!(text.contains("several models") && text.contains("x.safetensors, y.safetensors"), "{text}");
}

#[test]
fn a_lone_shard_is_not_a_model() {
    let dir = tempdir().unwrap();
    save(dir.path().join("model-00001-of-00002.safetensors"), "a", 1.0);
    assert!(message(Weights::open(dir.path())).contains("no weights here"));
}

#[test]
fn missing_files_folders_as_files_and_pickles_are_errors() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("none.safetensors");
    assert!(matches!(Weights::open(&path), Err(Error::Io { path: p, .. }) if p == path));
    let pickle = dir.path().join("model.ckpt");
    fs::write(&pickle, "x").unwrap();
    assert!(matches!(Weights::open(&pickle), Err(Error::Unsupported { .. })));
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(message(Weights::open(dir.path())).contains("model.safetensors: is not a regular file"));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_an_error_and_not_a_wait() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(message(Weights::open(&path)).contains("not a regular file"));
}

#[test]
fn shards_are_written_and_read_as_one_model() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("diffusion_pytorch_model.safetensors");
    let specs: Vec<_> = ["a", "b", "c", "d"].map(|n| spec(n, Dtype::F32, &[25])).into();
    write(&path, specs.clone(), &sharded(200), fill).unwrap();
    assert_eq!(
        files(dir.path()),
        [
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            "diffusion_pytorch_model-00002-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
        ]
    );
    let index = fs::read(dir.path().join("diffusion_pytorch_model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], 400);
    assert_eq!(index["weight_map"]["c"], "diffusion_pytorch_model-00002-of-00002.safetensors");
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.names().len(), 4);
    for s in &specs {
        assert_eq!(weights.read_f32(&s.name).unwrap(), values(s));
    }
}

#[test]
fn a_tensor_above_the_shard_size_has_its_own_shard() {
    let dir = tempdir().unwrap();
    let specs: Vec<_> = [("a", 1), ("b", 100), ("c", 1)].map(|(n, len)| spec(n, Dtype::F32, &[len])).into();
    write(dir.path().join("m.safetensors"), specs, &sharded(8), fill).unwrap();
    let sizes: Vec<usize> = (1..=3)
        .map(|i| Weights::open(dir.path().join(format!("m-0000{i}-of-00003.safetensors"))).unwrap().byte_count())
        .collect();
    assert_eq!(sizes, [4, 400, 4]);
}

#[test]
fn saving_again_replaces_the_old_model_whole() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let specs = |n: usize| (0..n).map(|i| spec(&format!("t{i}"), Dtype::F32, &[1])).collect::<Vec<_>>();
    fs::write(dir.path().join("m-other-of-00001.safetensors"), "mine").unwrap();
    for (count, options, expected) in
        [(3, sharded(4), 5), (2, sharded(4), 4), (2, WriteOptions::default(), 2), (2, sharded(4), 4)]
    {
        write(&path, specs(count), &options, fill).unwrap();
        assert_eq!(files(dir.path()).len(), expected, "{:?}", files(dir.path()));
    }
    // A file that only looks like a shard stays.
    assert!(dir.path().join("m-other-of-00001.safetensors").exists());
}

#[test]
fn an_unfinished_save_leaves_the_old_model_and_no_trace() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    save(&path, "a", 3.0);
    let mut writer = Writer::create(&path, vec![spec("a", Dtype::F32, &[1])], &WriteOptions::default()).unwrap();
    writer.put_f32("a", &[4.0]).unwrap();
    drop(writer);
    let failed =
        write(&path, vec![spec("a", Dtype::F32, &[1])], &WriteOptions::default(), |_, _| Err(Error::Cancelled));
    assert!(matches!(failed, Err(Error::Cancelled)));
    assert_eq!(Weights::open(&path).unwrap().read_f32("a").unwrap(), [3.0]);
    assert_eq!(files(dir.path()), ["m.safetensors"]);
}

#[test]
fn an_open_model_survives_being_replaced() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    save(&path, "a", 3.0);
    let old = Weights::open(&path).unwrap();
    save(&path, "a", 4.0);
    assert_eq!(old.read_f32("a").unwrap(), [3.0]);
}

#[test]
fn tensors_are_put_in_any_order_each_once_and_none_forgotten() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let specs = || vec![spec("a", Dtype::F32, &[2]), spec("b", Dtype::I64, &[1]), spec("c", Dtype::F16, &[1])];
    let mut writer = Writer::create(&path, specs(), &WriteOptions::default()).unwrap();
    let big = (1i64 << 53) + 1;
    writer.put_f32("c", &[9.0]).unwrap();
    writer.put_i64("b", &[big]).unwrap();
    let fault = |result: Result<()>, expected: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    fault(writer.put_f32("c", &[9.0]), "`c`: was written twice");
    fault(writer.put_f32("z", &[9.0]), "`z`: was not declared");
    fault(writer.put_f32("a", &[9.0]), "`a`: shape [2] does not have 1 elements");
    fault(writer.put_i64("a", &[1, 2]), "`a`: was declared F32");
    fault(
        Writer::create(&path, specs(), &WriteOptions::default()).unwrap().finish(),
        "`a`: was declared, but never written",
    );
    writer.put_f32("a", &[1.0, 2.0]).unwrap();
    writer.finish().unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.read_f32("a").unwrap(), [1.0, 2.0]);
    assert_eq!(weights.read_i64("b").unwrap(), [big]);
    assert_eq!(weights.read_f32("c").unwrap(), [9.0]);
}

#[test]
fn values_that_a_dtype_cannot_hold_are_errors() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    for (dtype, value, expected) in [
        (Dtype::F16, 1e6, "1000000 is too large for F16"),
        (Dtype::BF16, f32::MAX, "too large for BF16"),
        (Dtype::I64, 0.5, "0.5 is not a whole number"),
        (Dtype::I64, f32::NAN, "NaN is not a whole number"),
        (Dtype::I64, 1e19, "not a whole number that fits"),
    ] {
        let result = write(&path, vec![spec("a", dtype, &[1])], &WriteOptions::default(), |_, out| {
            out[0] = value;
            Ok(())
        });
        let text = result.unwrap_err().to_string();
        assert!(text.contains("tensor `a`") && text.contains(expected), "{text}");
        assert!(files(dir.path()).is_empty());
    }
    // What is infinite or NaN already stays so: the caller may want to look at it.
    write(&path, vec![spec("a", Dtype::F16, &[2])], &WriteOptions::default(), |_, out| {
        out.copy_from_slice(&[f32::INFINITY, f32::NAN]);
        Ok(())
    })
    .unwrap();
    let read = Weights::open(&path).unwrap().read_f32("a").unwrap();
    assert!(read[0] == f32::INFINITY && read[1].is_nan());
}

#[test]
fn models_that_cannot_be_written_are_errors() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let options = WriteOptions::default();
    let fault = |path: &Path, specs: Vec<TensorSpec>, options: &WriteOptions, expected: &str| {
        let text = Writer::create(path, specs, options).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    let a = || spec("a", Dtype::F32, &[1]);
    fault(&path, vec![a(), a()], &options, "`a`: is declared twice");
    fault(&path, vec![spec("", Dtype::F32, &[1])], &options, "cannot be a tensor's name");
    fault(&path, vec![spec("__metadata__", Dtype::F32, &[1])], &options, "cannot be a tensor's name");
    fault(&path, vec![spec("a", Dtype::U8, &[1])], &options, "writing U8 is not supported");
    fault(&path, vec![spec("a", Dtype::F32, &[usize::MAX, 2])], &options, "more elements");
    fault(&path, vec![a()], &sharded(0), "max_shard_bytes");
    fault(&dir.path().join("m.bin"), vec![a()], &options, "name.safetensors");
    fault(&dir.path().join("none/m.safetensors"), vec![a()], &options, "none/m.safetensors");
    fs::create_dir(&path).unwrap();
    fault(&path, vec![a()], &options, "is a folder");
    assert_eq!(files(dir.path()), ["m.safetensors"]);
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn shards_that_disagree_with_the_index_are_errors() {
    let index = r#"{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#;
    let dir = folder_with(&[(INDEX, index)]);
    assert!(message(Weights::open(dir.path())).contains("the shard `x.safetensors` is missing"));
    save(dir.path().join("x.safetensors"), "a", 1.0);
    assert!(message(Weights::open(dir.path())).contains("the shard `y.safetensors` is missing"));
    save(dir.path().join("y.safetensors"), "c", 2.0);
    let text = message(Weights::open(dir.path()));
    assert!(text.contains("tensor `b`: is not in `y.safetensors`, where the index says"), "{text}");
    // In the wrong shard is as good as missing.
    write(
        dir.path().join("x.safetensors"),
        ["a", "b"].map(|n| spec(n, Dtype::F32, &[1])).into(),
        &WriteOptions::default(),
        fill,
    )
    .unwrap();
    assert!(message(Weights::open(dir.path())).contains("tensor `b`: is not in `y.safetensors`"));
    fs::write(dir.path().join("y.safetensors"), "broken").unwrap();
    assert!(message(Weights::open(dir.path())).contains("y.safetensors: cut off"));
}

#[test]
fn the_index_decides_between_two_copies_and_without_it_they_are_an_error() {
    let index = r#"{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#;
    let dir = folder_with(&[(INDEX, index)]);
    let save_all = |file: &str, names: &[&str], value: f32| {
        let specs = names.iter().map(|n| spec(n, Dtype::F32, &[1])).collect();
        let put = |_: &TensorSpec, out: &mut [f32]| {
            out[0] = value;
            Ok(())
        };
        write(dir.path().join(file), specs, &WriteOptions::default(), put).unwrap();
    };
    save_all("x.safetensors", &["a", "b", "extra"], 1.0);
    save_all("y.safetensors", &["a", "b"], 2.0);
    let weights = Weights::open(dir.path()).unwrap();
    let read = |name: &str| weights.read_f32(name).unwrap()[0];
    assert_eq!((read("a"), read("b"), read("extra")), (1.0, 2.0, 1.0));
    save_all("y.safetensors", &["a", "b", "extra"], 2.0);
    let text = message(Weights::open(dir.path()));
    assert!(text.contains("tensor `extra`") && text.contains("x.safetensors"), "{text}");
}

#[test]
fn shards_outside_of_the_folder_are_never_opened() {
    let dir = tempdir().unwrap();
    save(dir.path().join("secret.safetensors"), "a", 1.0);
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for shard in ["../secret.safetensors", dir.path().join("secret.safetensors").to_str().unwrap()] {
        fs::write(model.join(INDEX), format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#)).unwrap();
        let text = message(Weights::open(&model));
        assert!(text.contains("tensor `a`") && text.contains("beside the index"), "{text}");
    }
}

#[test]
fn half_precision_shards_under_both_customs_are_found() {
    for index in ["diffusion_pytorch_model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"] {
        let dir = folder_with(&[(index, r#"{"weight_map":{"a":"x-00001-of-00001.safetensors"}}"#)]);
        save(dir.path().join("x-00001-of-00001.safetensors"), "a", 5.0);
        assert_eq!(Weights::open(dir.path()).unwrap().read_f32("a").unwrap(), [5.0]);
    }
}

#[test]
fn metadata_is_kept() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let metadata: BTreeMap<_, _> = [("step", "12"), ("note", "ä \"quoted\"")].map(|(k, v)| (k.into(), v.into())).into();
    let options = WriteOptions { metadata: metadata.clone(), ..Default::default() };
    write(&path, vec![], &options, fill).unwrap();
    assert_eq!(Weights::open(&path).unwrap().metadata(), &metadata);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_model_round_trips(shapes in prop::collection::vec((prop::collection::vec(0usize..5, 0..4), 0usize..3), 0..12), max in 1u64..300) {
        let dir = tempdir().unwrap();
        let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16];
        let specs: Vec<_> =
            shapes.into_iter().enumerate().map(|(i, (shape, d))| spec(&format!("t.{i}"), dtypes[d], &shape)).collect();
        write(dir.path().join("model.safetensors"), specs.clone(), &sharded(max), fill).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        prop_assert_eq!(weights.names().len(), specs.len());
        for s in &specs {
            prop_assert_eq!(&weights.info(&s.name).unwrap().shape, &s.shape);
            prop_assert_eq!(weights.read_f32(&s.name).unwrap(), values(s));
        }
    }
}
