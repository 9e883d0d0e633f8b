//! Nasty files, one mistake each: every reader must answer with an error that names the mistake, and never panic.
//!
//! The files are made here and lie in `tests/corpus/<fuzz target>/`, where `cargo fuzz` starts from. After a change:
//! `LANGEVIN_BLESS=1 cargo test --test corpus`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use langevin::data::{Dataset, DatasetOptions};
use langevin::weights::{Header, ShardIndex};
use support::*;

/// A file, and what the error must say; `Ok` files have nothing to say.
struct Case {
    target: &'static str,
    name: &'static str,
    bytes: Vec<u8>,
    expected: &'static [&'static str],
}

/// What the fuzz target of this name runs. The error, if there is one, as text.
fn run(target: &str, bytes: &[u8]) -> Result<(), String> {
    run_with(target, bytes, DatasetOptions::default())
}

fn run_with(target: &str, bytes: &[u8], options: DatasetOptions) -> Result<(), String> {
    let path = Path::new("some/file");
    let options = DatasetOptions { max_bytes: 1 << 20, ..options };
    match target {
        "safetensors" => Header::parse(path, bytes).map(|_| ()),
        "index_json" => ShardIndex::parse(path, bytes).map(|_| ()),
        "dataset_zip" => Dataset::from_zip(path, bytes, &options).map(|_| ()),
        "webdataset" => Dataset::from_tar(path, bytes, &options).map(|_| ()),
        "idx" => Dataset::from_idx(path, bytes, None, &options).map(|_| ()),
        _ => unreachable!("{target}"),
    }
    .map_err(|e| e.to_string())
}

fn safetensors_cases() -> Vec<Case> {
    let one = |e: String| format!("{{{e}}}");
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    let f32_a = || entry("a", "F32", "[2]", 0, 8);
    let good = safetensors(&one(f32_a()), &[0; 8]);
    let nested = format!(r#"{{"a":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    let nested_field = format!(r#"{{"a":{{"dtype":"F32","shape":{}{}}}}}"#, "[".repeat(1000), "]".repeat(1000));
    let nested_metadata = format!(r#"{{"__metadata__":{}1{}}}"#, r#"{"a":"#.repeat(1000), "}".repeat(1000));
    let case = |name, bytes, expected| Case { target: "safetensors", name, bytes, expected };
    let header = |name, json: String, data: usize, expected| Case {
        target: "safetensors",
        name,
        bytes: safetensors(&json, &vec![0; data]),
        expected,
    };
    vec![
        case("ok", good.clone(), &[]),
        header("ok-none", "{}".into(), 0, &[]),
        header("ok-zero-dim", two(entry("e", "F32", "[0,7]", 8, 8), f32_a()), 8, &[]),
        header("ok-zero-dim-first", two(entry("e", "F32", "[0]", 0, 0), f32_a()), 8, &[]),
        header("ok-scalar", one(entry("s", "F64", "[]", 0, 8)), 8, &[]),
        header("ok-unaligned", two(entry("b", "BOOL", "[3]", 0, 3), entry("w", "F32", "[2]", 3, 11)), 11, &[]),
        header("ok-metadata", format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, f32_a()), 8, &[]),
        case("empty", vec![], &["some/file", "empty"]),
        case("cut-in-length", good[..5].to_vec(), &["some/file", "cut off", "5 bytes"]),
        case("cut-in-header", good[..20].to_vec(), &["some/file", "cut off", "only 12 follow"]),
        case("cut-in-data", good[..good.len() - 1].to_vec(), &["tensor `a`", "0..8", "out of range", "7 bytes"]),
        case("length-huge", raw_safetensors(u64::MAX, b"{}", &[]), &["18446744073709551615 bytes", "limit"]),
        case("length-just-over-limit", raw_safetensors(100_000_001, b"{}", &[]), &["100000001", "limit"]),
        case("length-over-file", raw_safetensors(1000, b"{}", &[]), &["1000", "only 2 follow"]),
        case("length-short", raw_safetensors(5, one(f32_a()).as_bytes(), &[0; 8]), &["bad JSON header", "EOF"]),
        case("length-zero", raw_safetensors(0, b"", &[]), &["JSON"]),
        case("not-utf8", raw_safetensors(4, b"{\"\xff\"", &[]), &["UTF-8"]),
        header("not-json", "hello there".into(), 0, &["JSON"]),
        header("json-array", "[]".into(), 0, &["bad JSON header", "expected an object"]),
        header("json-trailing", "{} {}".into(), 0, &["trailing"]),
        header("nesting-bomb", nested, 0, &["tensor `a`"]),
        header("nesting-bomb-shape", nested_field, 0, &["tensor `a`"]),
        header("nesting-bomb-metadata", nested_metadata, 0, &["__metadata__", "string"]),
        header("nesting-bomb-cut", format!(r#"{{"a":{}"#, "[".repeat(1000)), 0, &["bad JSON header", "EOF"]),
        header("duplicate", two(f32_a(), entry("a", "F32", "[2]", 8, 16)), 16, &["`a` appears twice"]),
        header("duplicate-same-bytes", two(f32_a(), f32_a()), 8, &["`a` appears twice"]),
        header("duplicate-escaped", two(f32_a(), entry("\\u0061", "F32", "[2]", 0, 8)), 8, &["`a` appears twice"]),
        header("duplicate-metadata", r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, &["__metadata__", "twice"]),
        header("duplicate-metadata-key", r#"{"__metadata__":{"k":"1","k":"2"}}"#.into(), 0, &["`k` appears twice"]),
        header(
            "duplicate-field",
            r#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.into(),
            8,
            &["tensor `a`", "duplicate field `dtype`"],
        ),
        header("metadata-not-text", r#"{"__metadata__":{"k":1}}"#.into(), 0, &["__metadata__", "string"]),
        header(
            "overlap",
            two(f32_a(), entry("b", "F32", "[2]", 4, 12)),
            12,
            &["tensor `b`", "overlaps another tensor"],
        ),
        header(
            "overlap-equal",
            two(f32_a(), entry("b", "F32", "[2]", 0, 8)),
            8,
            &["tensor `b`", "overlaps another tensor"],
        ),
        header("overlap-empty-inside", two(f32_a(), entry("b", "F32", "[0]", 4, 4)), 8, &["tensor `b`", "overlaps"]),
        header("hole", two(f32_a(), entry("b", "F32", "[1]", 12, 16)), 16, &["tensor `b`", "hole"]),
        header("hole-first", one(entry("a", "F32", "[2]", 4, 12)), 12, &["tensor `a`", "hole"]),
        header("trailing-data", one(f32_a()), 9, &["bytes after the last tensor"]),
        header("trailing-data-no-tensors", "{}".into(), 9, &["bytes after the last tensor"]),
        header("backwards", one(entry("a", "F32", "[2]", 8, 0)), 8, &["tensor `a`", "backwards"]),
        header("out-of-range", one(entry("a", "F32", "[2]", 8, 16)), 8, &["tensor `a`", "out of range"]),
        header("offset-max", one(entry("a", "U8", "[1]", u64::MAX - 1, u64::MAX)), 1, &["tensor `a`", "out of range"]),
        header(
            "offset-negative",
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#.into(),
            1,
            &["tensor `a`"],
        ),
        header("offset-float", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1.0]}}"#.into(), 1, &["tensor `a`"]),
        header(
            "offset-missing",
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#.into(),
            1,
            &["tensor `a`", "tuple of size 2"],
        ),
        header("offset-extra", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#.into(), 1, &["tensor `a`"]),
        header(
            "shape-too-long",
            one(entry("a", "F32", "[3]", 0, 8)),
            8,
            &["tensor `a`", "[3]", "needs 12 bytes", "has 8"],
        ),
        header("shape-too-short", one(entry("a", "F16", "[3]", 0, 8)), 8, &["tensor `a`", "needs 6 bytes", "has 8"]),
        header(
            "shape-overflow",
            one(entry("a", "F32", "[4294967296,4294967296]", 0, 0)),
            0,
            &["tensor `a`", "more elements"],
        ),
        header("shape-overflow-by-dtype", one(entry("a", "F32", "[4611686018427387904]", 0, 0)), 0, &["more elements"]),
        header("shape-overflow-isize", one(entry("a", "U8", "[9223372036854775808]", 0, 0)), 0, &["more elements"]),
        header(
            "shape-overflow-behind-zero",
            one(entry("a", "F32", "[0,4294967296,4294967296]", 0, 0)),
            0,
            &["more elements"],
        ),
        header(
            "shape-many-dimensions",
            one(entry("a", "F32", &format!("[{}1]", "1,".repeat(999)), 0, 4)),
            4,
            &["tensor `a`", "1000 dimensions"],
        ),
        header("shape-half-byte", one(entry("a", "F4", "[3]", 0, 1)), 1, &["byte boundary"]),
        header("shape-negative", one(entry("a", "F32", "[-2]", 0, 8)), 8, &["tensor `a`"]),
        header("shape-over-u64", one(entry("a", "F32", "[18446744073709551616]", 0, 8)), 8, &["tensor `a`"]),
        header("dtype-unknown", one(entry("a", "F33", "[2]", 0, 8)), 8, &["tensor `a`", "unknown variant `F33`"]),
        header(
            "dtype-missing",
            r#"{"a":{"shape":[2],"data_offsets":[0,8]}}"#.into(),
            8,
            &["tensor `a`", "missing field `dtype`"],
        ),
        header(
            "field-unknown",
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":[[[]]]}}"#.into(),
            8,
            &["unknown field `x`"],
        ),
        header("name-terminal-escape", one(entry("\\u001b[2J", "F33", "[2]", 0, 8)), 8, &["tensor `\\u{1b}[2J`"]),
        header("name-long", one(entry(&"n".repeat(2000), "F33", "[2]", 0, 8)), 8, &["nnn…`"]),
    ]
}

fn index_cases() -> Vec<Case> {
    let case = |name, text: &str, expected| Case { target: "index_json", name, bytes: text.into(), expected };
    vec![
        case("ok", r#"{"metadata":{"total_size":4},"weight_map":{"a":"m-00001-of-00001.safetensors"}}"#, &[]),
        case("empty", "", &["some/file", "bad index"]),
        case("cut", r#"{"weight_map":{"a":"x"#, &["bad index", "EOF"]),
        case("no-map", r#"{"metadata":{}}"#, &["missing field `weight_map`"]),
        case("empty-map", r#"{"weight_map":{}}"#, &["`weight_map` is empty"]),
        case("map-array", r#"{"weight_map":["a"]}"#, &["expected an object"]),
        case("duplicate", r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#, &["`a` appears twice"]),
        case("shard-number", r#"{"weight_map":{"a":3}}"#, &["bad index", "string"]),
        case("nesting-bomb", &format!(r#"{{"x":{}"#, "[".repeat(1000)), &["bad index"]),
        case("nesting-bomb-map", &format!(r#"{{"weight_map":{}"#, r#"{"a":"#.repeat(1000)), &["bad index"]),
        case("parent", r#"{"weight_map":{"a":"../x.safetensors"}}"#, &["tensor `a`", "`../x.safetensors`", "beside"]),
        case("parent-only", r#"{"weight_map":{"a":".."}}"#, &["tensor `a`", "beside"]),
        case("dot", r#"{"weight_map":{"a":"."}}"#, &["tensor `a`", "beside"]),
        case("absolute", r#"{"weight_map":{"a":"/etc/passwd"}}"#, &["`/etc/passwd`", "beside"]),
        case("subfolder", r#"{"weight_map":{"a":"s/x.safetensors"}}"#, &["beside"]),
        case("trailing-slash", r#"{"weight_map":{"a":"x.safetensors/"}}"#, &["beside"]),
        case("backslash", r#"{"weight_map":{"a":"..\\x.safetensors"}}"#, &["beside"]),
        case("drive", r#"{"weight_map":{"a":"C:x.safetensors"}}"#, &["beside"]),
        case("nul", r#"{"weight_map":{"a":"x\u0000.safetensors"}}"#, &["beside"]),
        case("no-name", r#"{"weight_map":{"a":""}}"#, &["beside"]),
        Case { target: "index_json", name: "not-utf8", bytes: b"{\"\xff\":1}".into(), expected: &["bad index"] },
    ]
}

fn zip_cases() -> Vec<Case> {
    let red = || ZipFile::new("00/0.png", rgb_png([255, 0, 0]));
    let blue = || ZipFile::new("00/1.png", rgb_png([0, 0, 255])).deflated();
    let json = |text: &str| ZipFile::new("dataset.json", text);
    let good = zip(&[red(), blue(), json(r#"{"labels":[["00/0.png",1],["00/1.png",0]]}"#)]);
    let with = |text: &str| zip(&[red(), blue(), json(text)]);
    let image = |contents: Vec<u8>| zip(&[red(), ZipFile::new("00/1.png", contents)]);
    let mut cut_png = rgb_png([1, 2, 3]);
    cut_png.truncate(cut_png.len() - 20);
    let jpeg = include_bytes!("data/cifar-00000.jpg");
    let lossy = include_bytes!("data/cifar-00000.webp");
    let noise: Vec<u8> = (0..48u32).map(|i| i.wrapping_mul(2654435761).to_be_bytes()[0]).collect();
    let lossless = webp(4, 4, image_webp::ColorType::Rgb8, &noise);
    let mut bad_count = good.clone();
    let end = good.len() - 22;
    bad_count[end + 8..end + 12].copy_from_slice(&[9, 0, 9, 0]);
    let mut low_count = good.clone();
    low_count[end + 8..end + 12].copy_from_slice(&[2, 0, 2, 0]);
    let hidden = zip(&[blue()]);
    let mut bad_offset = good.clone();
    bad_offset[end + 16..end + 20].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    let mut bad_signature = good.clone();
    let directory = u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()) as usize;
    bad_signature[directory] = b'X';
    let mut bad_name = good.clone();
    bad_name[directory + 46] = 0xff;
    let mut bad_local = good.clone();
    bad_local[2] = 9;
    let mut huge_zip64 = include_bytes!("data/zip64.zip").to_vec();
    let n = huge_zip64.len();
    huge_zip64[n - 22 - 20 - 56 + 24..][..16].copy_from_slice(&[0xff; 16]);
    let bomb = ZipFile::new("00/1.png", vec![0; 1 << 20]).deflated();
    let case = |name, bytes, expected| Case { target: "dataset_zip", name, bytes, expected };
    vec![
        case("ok", good.clone(), &[]),
        case("ok-null-labels", with(r#"{"labels":null}"#), &[]),
        case("ok-zip64", include_bytes!("data/zip64.zip").to_vec(), &[]),
        case("ok-jpeg", zip(&[ZipFile::new("a.JPG", *jpeg)]), &[]),
        case("empty", vec![], &["some/file", "not a complete zip"]),
        case("cut", good[..good.len() - 1].to_vec(), &["not a complete zip", "cut off"]),
        case("no-entries", zip(&[]), &["no PNG, JPEG or WebP"]),
        case("no-images", zip(&[json("{}")]), &["no PNG, JPEG or WebP"]),
        case("count-lies", bad_count, &["not a complete zip", "Unexpected end"]),
        case("count-low", low_count, &["missing from central directory"]),
        case("directory-outside", bad_offset, &["not a complete zip", "offset"]),
        case("directory-signature", bad_signature, &["not a complete zip"]),
        case("name-differs", bad_name, &["0/0.png`", "filename mismatch"]),
        case("local-header-wrong", bad_local, &["`00/0.png`", "Invalid local file header"]),
        case("zip64-huge-count", huge_zip64, &["not a complete zip"]),
        case("duplicate-entry", zip(&[red(), red()]), &["two entries", "same name"]),
        case("same-data-twice", zip(&[red(), ZipFile { offset: Some(0), ..blue() }]), &["`00/1.png`", "mismatch"]),
        case(
            "overlapping-entries",
            zip(&[ZipFile::new("0.bin", hidden), ZipFile { offset: Some(30 + 5), ..blue() }]),
            &["overlapping entries"],
        ),
        case(
            "offset-in-directory",
            zip(&[red(), ZipFile { offset: Some(9999), ..blue() }]),
            &["`00/1.png`", "Unexpected end"],
        ),
        case("encrypted", zip(&[ZipFile { flags: 1, ..red() }]), &["`00/0.png`", "Password required"]),
        case(
            "method-unknown",
            zip(&[ZipFile { method: Some(14), ..red() }]),
            &["`00/0.png`", "method not supported: 14"],
        ),
        case("crc-wrong", zip(&[red(), ZipFile { crc: Some(7), ..blue() }]), &["`00/1.png`", "checksum"]),
        case("not-deflate", zip(&[ZipFile { method: Some(8), ..red() }]), &["`00/0.png`", "corrupt deflate stream"]),
        case(
            "bomb-declared",
            zip(&[ZipFile { declared_size: Some(u32::MAX - 1), ..bomb.clone() }]),
            &["`00/1.png`", "4294967294 bytes", "limit"],
        ),
        case(
            "bomb-actual",
            zip(&[ZipFile { declared_size: Some(100), ..bomb.clone() }]),
            &["`00/1.png`", "100 bytes", "larger than its declared"],
        ),
        case(
            "size-too-large",
            zip(&[red(), ZipFile { declared_size: Some(999), ..blue() }]),
            &["`00/1.png`", "declares 999"],
        ),
        case("labels-not-json", with("{"), &["dataset.json", "EOF"]),
        case("labels-missing-field-ok-null", with(r#"{"labels":{}}"#), &["dataset.json", "sequence"]),
        case(
            "labels-nesting-bomb",
            with(&format!(r#"{{"labels":[["00/0.png",{}"#, "[".repeat(1000))),
            &["dataset.json", "recursion"],
        ),
        case(
            "labels-vector",
            with(r#"{"labels":[["00/0.png",[0.5]],["00/1.png",0]]}"#),
            &["`00/0.png`", "whole number", "[0.5]"],
        ),
        case("labels-negative", with(r#"{"labels":[["00/0.png",-1],["00/1.png",0]]}"#), &["`00/0.png`", "-1"]),
        case(
            "labels-huge",
            with(r#"{"labels":[["00/0.png",4294967295],["00/1.png",0]]}"#),
            &["`00/0.png`", "4294967295"],
        ),
        case("labels-twice", with(r#"{"labels":[["00/0.png",1],["00/0.png",0]]}"#), &["`00/0.png` has two labels"]),
        case("labels-too-few", with(r#"{"labels":[["00/0.png",1]]}"#), &["`00/1.png` has no label"]),
        case(
            "labels-too-many",
            with(r#"{"labels":[["00/0.png",1],["00/1.png",0],["00/2.png",0]]}"#),
            &["`00/2.png`", "no such image"],
        ),
        case("image-broken", image(cut_png), &["`00/1.png`", "broken PNG"]),
        case("image-text", image(b"hello".into()), &["`00/1.png`", "none of PNG, JPEG and WebP"]),
        case("image-empty", image(vec![]), &["`00/1.png`", "is empty"]),
        case(
            "image-other-size",
            image(png(2, 1, png::ColorType::Rgb, &[0; 6])),
            &["`00/1.png`", "2x1", "first image is 2x2"],
        ),
        // Grey becomes RGB where RGB is.
        case("ok-grey-among-rgb", image(png(2, 2, png::ColorType::Grayscale, &[0; 4])), &[]),
        case("image-transparent", image(png(2, 2, png::ColorType::Rgba, &[9; 16])), &["`00/1.png`", "transparent"]),
        case(
            "image-absurd",
            zip(&[ZipFile::new("x.png", png_claiming(0x7fff_ffff, 0x7fff_ffff))]),
            &["`x.png`", "absurd"],
        ),
        case(
            "image-absurd-width",
            zip(&[ZipFile::new("x.png", png_claiming(20_000, 1))]),
            &["`x.png`", "20000x1", "absurd"],
        ),
        case(
            "image-large",
            zip(&[ZipFile::new("x.png", png_claiming(16_384, 16_384))]),
            &["`x.png`", "takes more than"],
        ),
        case(
            "image-over-max-bytes",
            zip(&[ZipFile::new("x.png", png_claiming(1000, 1000))]),
            &["3000000", "max_bytes"],
        ),
        case("jpeg-cut", zip(&[ZipFile::new("x.jpg", &jpeg[..400])]), &["`x.jpg`", "broken JPEG"]),
        case("ok-webp", zip(&[ZipFile::new("a.webp", *lossy)]), &[]),
        case("webp-cut", zip(&[ZipFile::new("x.webp", &lossy[..300])]), &["`x.webp`", "broken WebP"]),
        case("webp-header-only", zip(&[ZipFile::new("x.webp", &lossy[..20])]), &["`x.webp`", "broken WebP"]),
        case("webp-lossless-cut", zip(&[ZipFile::new("x.webp", &lossless[..40])]), &["`x.webp`", "broken WebP"]),
        case("jpeg-header-only", zip(&[ZipFile::new("x.jpg", &jpeg[..3])]), &["`x.jpg`", "broken JPEG"]),
    ]
}

fn idx_cases() -> Vec<Case> {
    let good = idx(&[2, 2, 3], &[7; 12]);
    let packed = gzip(&good);
    let bomb = gzip(&idx(&[2, 2, 3], &[0; 1 << 18]));
    let mut bad_crc = packed.clone();
    let at = packed.len() - 8;
    bad_crc[at] ^= 1;
    let case = |name, bytes, expected| Case { target: "idx", name, bytes, expected };
    vec![
        case("ok", good.clone(), &[]),
        case("ok-gz", packed.clone(), &[]),
        case("empty", vec![], &["some/file", "not an IDX file"]),
        case("magic", b"\0\0\x0d\x03rest".to_vec(), &["unsigned bytes", "0d"]),
        case("labels-as-images", idx(&[2], &[0, 1]), &["with 3 dimensions"]),
        case("cut-in-dims", good[..10].to_vec(), &["cut off in the dimensions"]),
        case("cut", good[..good.len() - 1].to_vec(), &["cut off", "12 elements declared, 11 found"]),
        case("cut-gz", packed[..packed.len() - 12].to_vec(), &["broken after"]),
        case("crc-gz", bad_crc, &["broken after"]),
        case("too-long", [&good[..], &[0]].concat(), &["more than the 12"]),
        case("bomb-gz", bomb, &["more than the 12"]),
        case("huge", idx(&[u32::MAX, 1, 1], &[]), &["4294967295 images", "max_bytes"]),
        case("overflow", idx(&[u32::MAX, 16_384, 16_384], &[]), &["4294967295 images", "max_bytes"]),
        case("absurd", idx(&[1, u32::MAX, u32::MAX], &[]), &["absurd"]),
        case("zero-side", idx(&[1, 0, 4], &[]), &["absurd"]),
        case("no-images", idx(&[0, 2, 3], &[]), &["holds no images"]),
    ]
}

fn tar_cases() -> Vec<Case> {
    let file = |name: &str, contents: &str| TarFile::new(name, contents);
    let image = |name: &str| TarFile::new(name, rgb_png([1, 2, 3]));
    let pair = |class: TarFile| tar(&[image("a.png"), class]);
    let cls = |text: &str| pair(file("a.cls", text));
    let json = |text: &str| pair(file("a.json", text));
    let good = tar(&[image("a.png"), file("a.cls", "1\n"), image("b.png"), file("b.json", r#"{"label":0}"#)]);
    let packed = gzip(&good);
    let mut bad_checksum = good.clone();
    bad_checksum[0] = b'x';
    let mut no_mark = good.clone();
    no_mark.truncate(good.len() - 1024);
    let bomb = gzip(&tar(&[TarFile::new("a.png", vec![0; 2 << 20])]));
    let declared = |size| TarFile { declared_size: Some(size), ..image("b.png") };
    let link = TarFile { kind: tar::EntryType::Symlink, ..file("b.png", "") };
    let sparse = TarFile { kind: tar::EntryType::GNUSparse, ..image("b.png") };
    let long_name = TarFile { kind: tar::EntryType::GNULongName, ..file("././@LongLink", &"n".repeat(600)) };
    let pax = TarFile { kind: tar::EntryType::XHeader, ..file("pax", "20 size=99999999999\n") };
    let mut not_utf8 = good.clone();
    not_utf8[..1].copy_from_slice(&[0xff]);
    let sum = not_utf8[..512].iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { *b as u32 });
    let sum = format!("{:06o}\0 ", sum.sum::<u32>());
    not_utf8[148..156].copy_from_slice(sum.as_bytes());
    let case = |name, bytes, expected| Case { target: "webdataset", name, bytes, expected };
    vec![
        case("ok", good.clone(), &[]),
        case("ok-gz", packed.clone(), &[]),
        case("ok-path-traversal", tar(&[image("../../a.png"), image("/etc/b.png")]), &[]),
        case("ok-long-name", tar(&[long_name.clone(), image("a.png")]), &["holds no PNG"]),
        case("ok-other-files", tar(&[image("a.png"), file("a.txt", "x"), image("a.seg.png"), image("._b.png")]), &[]),
        case("ok-concatenated", [tar(&[image("a.png")]), tar(&[image("b.png")])].concat(), &[]),
        case("empty", vec![], &["some/file", "not a complete tar"]),
        case("no-images", tar(&[file("a.txt", "x")]), &["no PNG, JPEG or WebP"]),
        case("not-a-tar", b"hello".repeat(200), &["not a complete tar"]),
        case("cut-in-header", good[..300].to_vec(), &["not a complete tar", "cut off"]),
        case("cut-in-image", good[..550].to_vec(), &["cut off", "`a.png`", "declares"]),
        case("cut-between-files", good[..1024].to_vec(), &["cut off", "mark at its end"]),
        case("cut-mark", no_mark, &["cut off", "mark at its end"]),
        case("cut-gz", packed[..packed.len() - 12].to_vec(), &["broken gzip"]),
        case("bomb-gz", bomb, &["unpacks to more than 1048576 bytes"]),
        case("checksum", bad_checksum, &["checksum"]),
        case("garbage-after-end", [&good[..], &[7; 512]].concat(), &["not a complete tar"]),
        case("size-over-file", tar(&[image("a.png"), declared(1 << 20)]), &["cut off", "`b.png`", "1048576"]),
        case("size-huge", tar(&[image("a.png"), declared(u64::MAX)]), &["overflow"]),
        case("size-near-huge", tar(&[image("a.png"), declared(1 << 62)]), &["`b.png`", "4611686018427387904"]),
        case("size-by-pax", tar(&[pax, image("a.png")]), &["cut off", "`a.png`", "99999999999"]),
        case("size-zero", tar(&[TarFile::new("a.png", [])]), &["`a.png`", "is empty"]),
        case("long-name-alone", tar(&[long_name]), &["future member"]),
        case("name-not-utf8", not_utf8, &["`�.png`", "UTF-8"]),
        case("link", tar(&[image("a.png"), link]), &["`b.png`", "link"]),
        case("sparse", tar(&[image("a.png"), sparse]), &["not a complete tar", "real_size"]),
        case("duplicate-name", tar(&[image("a.png"), image("a.png")]), &["`a`", "more than one image"]),
        case("two-images", tar(&[image("a.png"), image("a.jpg")]), &["`a`", "more than one image"]),
        case("two-cls", tar(&[image("a.png"), file("a.cls", "1"), file("a.CLS", "1")]), &["`a`", "more than one cls"]),
        case("class-missing", tar(&[image("a.png"), file("a.cls", "1"), image("b.png")]), &["`b` has no class"]),
        case("class-without-image", tar(&[image("a.png"), file("b.cls", "1")]), &["`b` has a class, but no image"]),
        case("cls-text", cls("cat"), &["`a`", ".cls", "whole number", "`cat`"]),
        case("cls-empty", cls(""), &["`a`", ".cls", "whole number"]),
        case("cls-negative", cls("-1"), &["`a`", "`-1`"]),
        case("cls-huge", cls("4294967295"), &["`a`", "4294967295"]),
        case("cls-long", cls(&"9".repeat(5000)), &["`a`", "999…`"]),
        case("json-broken", json("{"), &["`a`", ".json", "EOF"]),
        case("json-array", json("[1]"), &["`a`", ".json"]),
        case("json-fraction", json(r#"{"class":1.5}"#), &["`a`", "`class` in .json", "`1.5`"]),
        case("json-negative", json(r#"{"cls":-3}"#), &["`a`", "`cls` in .json", "`-3`"]),
        case("json-nesting-bomb", json(&format!(r#"{{"label":{}"#, "[".repeat(1000))), &["`a`", "recursion"]),
        case("image-broken", tar(&[TarFile::new("x/a.png", "hello")]), &["`x/a.png`", "none of PNG"]),
        case(
            "image-absurd",
            tar(&[TarFile::new("a.png", png_claiming(0x7fff_ffff, 0x7fff_ffff))]),
            &["`a.png`", "absurd"],
        ),
    ]
}

fn cases() -> Vec<Case> {
    [safetensors_cases(), index_cases(), zip_cases(), idx_cases(), tar_cases()].into_iter().flatten().collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

#[test]
fn every_bad_file_is_an_error_that_names_the_mistake() {
    let mut faults = Vec::new();
    for Case { target, name, bytes, expected } in cases() {
        match run(target, &bytes) {
            Ok(()) if expected.is_empty() => {}
            Ok(()) => faults.push(format!("{target}/{name}: accepted")),
            Err(text) if expected.is_empty() => faults.push(format!("{target}/{name}: refused: {text}")),
            Err(text) => {
                let missing = expected
                    .iter()
                    .filter(|e| !text.contains(*e))
                    .map(|e| format!("{target}/{name}: no `{e}` in: {text}"));
                faults.extend(missing);
                if text.len() > 700 {
                    faults.push(format!("{target}/{name}: an error of {} bytes", text.len()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_files_for_the_fuzzer_are_these() {
    let bless = std::env::var_os("LANGEVIN_BLESS").is_some();
    for Case { target, name, bytes, .. } in cases() {
        let path = folder().join(target).join(name);
        if bless {
            fs::create_dir_all(folder().join(target)).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let stored = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; run with LANGEVIN_BLESS=1", path.display()));
        // Deflate's output depends on the library's version: for those files it is enough that they behave the same.
        if stored != bytes {
            assert_eq!(run(target, &stored), run(target, &bytes), "{target}/{name}; run with LANGEVIN_BLESS=1");
        }
    }
}

/// A poor man's fuzzer that runs with every test: all truncations, and thousands of small changes.
#[test]
fn damaged_files_never_panic() {
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for Case { target, bytes, .. } in cases().into_iter().filter(|c| !c.bytes.is_empty() && c.bytes.len() < 4000) {
        for end in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
            let _ = run(target, &bytes[..end]);
        }
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            for _ in 0..=random(3) {
                let at = random(damaged.len());
                match random(4) {
                    0 => damaged[at] ^= 1 << random(8),
                    1 => damaged[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                    2 => damaged[at] = random(256) as u8,
                    _ => damaged.insert(at, b"0]}\",\xff"[random(6)]),
                }
            }
            let _ = run(target, &damaged);
            let _ = run_with(target, &damaged, DatasetOptions { strict: false, resize: Some(3), ..Default::default() });
        }
    }
}
