//! Builders of files, good and bad, for the tests of readers.
// Every test program compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use langevin::Device;
use std::io::Write;
use std::path::Path;

/// A class-conditional UNet for 8×8 grey images.
pub const UNET: &str = r#"{
    "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8, "num_class_embeds": 3
}"#;

/// A DiT for the same, which learns its variance.
pub const DIT: &str = r#"{
    "_class_name": "DiTTransformer2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 2, "num_layers": 2,
    "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 2, "num_embeds_ada_norm": 2
}"#;

/// A DiT-MoE for the same, of 4 experts.
pub const DIT_MOE: &str = r#"{
    "_class_name": "DiTMoE", "input_size": 8, "in_channels": 1, "learn_sigma": false, "depth": 2, "hidden_size": 16,
    "num_heads": 2, "patch_size": 2, "mlp_ratio": 2, "num_experts": 4, "num_classes": 2, "n_shared_experts": 1
}"#;

/// The wgpu device; where there is none, the reason is printed, or it is a failure if `LANGEVIN_REQUIRE` has `wgpu`.
pub fn wgpu() -> Option<Device> {
    let required = std::env::var("LANGEVIN_REQUIRE").is_ok_and(|r| r.split(',').any(|d| d == "wgpu"));
    match Device::wgpu() {
        Ok(device) => Some(device),
        Err(e) if required => panic!("LANGEVIN_REQUIRE asks for wgpu: {e}"),
        Err(e) => {
            eprintln!("skipped on wgpu: {e}");
            None
        }
    }
}

/// The cuda device; where there is none, the reason is printed, or it is a failure if `LANGEVIN_REQUIRE` has `cuda`.
pub fn cuda() -> Option<Device> {
    let required = std::env::var("LANGEVIN_REQUIRE").is_ok_and(|r| r.split(',').any(|d| d == "cuda"));
    match Device::cuda() {
        Ok(device) => Some(device),
        Err(e) if required => panic!("LANGEVIN_REQUIRE asks for cuda: {e}"),
        Err(e) => {
            eprintln!("skipped on cuda: {e}");
            None
        }
    }
}

/// The wgpu device with f16; `LANGEVIN_REQUIRE` may have `f16`.
pub fn wgpu_f16() -> Option<Device> {
    let required = std::env::var("LANGEVIN_REQUIRE").is_ok_and(|r| r.split(',').any(|d| d == "f16"));
    match wgpu() {
        Some(device) if device.target().stores(langevin::tensor::DType::F16) => Some(device),
        _ if required => panic!("LANGEVIN_REQUIRE asks for f16, which no adapter here has"),
        found => {
            found.inspect(|_| eprintln!("skipped in f16: the adapter does not have it"));
            None
        }
    }
}
/// A safetensors file from its header text and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    raw_safetensors(header.len() as u64, header.as_bytes(), data)
}

/// A safetensors file whose declared header length may lie.
pub fn raw_safetensors(length: u64, header: &[u8], data: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), header, data].concat()
}

/// The header entry of a tensor.
pub fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// A file in a zip, and the lies to tell about it.
#[derive(Clone)]
pub struct ZipFile {
    pub name: String,
    pub contents: Vec<u8>,
    pub deflate: bool,
    pub declared_size: Option<u32>,
    pub crc: Option<u32>,
    pub method: Option<u16>,
    pub flags: u16,
    pub offset: Option<u32>,
}

impl ZipFile {
    pub fn new(name: &str, contents: impl Into<Vec<u8>>) -> Self {
        let (name, contents) = (name.to_string(), contents.into());
        ZipFile { name, contents, deflate: false, declared_size: None, crc: None, method: None, flags: 0, offset: None }
    }

    pub fn deflated(self) -> Self {
        ZipFile { deflate: true, ..self }
    }
}

/// A zip archive.
pub fn zip(files: &[ZipFile]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for file in files {
        let offset = file.offset.unwrap_or(out.len() as u32);
        let packed = if file.deflate { deflate(&file.contents) } else { file.contents.clone() };
        let mut crc = flate2::Crc::new();
        crc.update(&file.contents);
        let method = file.method.unwrap_or(if file.deflate { 8 } else { 0 });
        let mut common = Vec::new();
        for n in [20, file.flags, method, 0, 0] {
            common.extend(n.to_le_bytes());
        }
        let size = file.declared_size.unwrap_or(file.contents.len() as u32);
        for n in [file.crc.unwrap_or(crc.sum()), packed.len() as u32, size] {
            common.extend(n.to_le_bytes());
        }
        common.extend((file.name.len() as u16).to_le_bytes());
        common.extend(0u16.to_le_bytes());
        out.extend([b"PK\x03\x04", &common[..], file.name.as_bytes(), &packed].concat());
        directory.extend([b"PK\x01\x02\x14\x00", &common[..], &[0; 10], &offset.to_le_bytes()].concat());
        directory.extend(file.name.as_bytes());
    }
    let (count, start) = (files.len() as u16, out.len() as u32);
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend([(directory.len() as u32).to_le_bytes(), start.to_le_bytes()].concat());
    out.extend(0u16.to_le_bytes());
    out
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A file in a tar, and the lies to tell about it.
#[derive(Clone)]
pub struct TarFile {
    pub name: String,
    pub contents: Vec<u8>,
    pub declared_size: Option<u64>,
    pub kind: tar::EntryType,
}

impl TarFile {
    pub fn new(name: &str, contents: impl Into<Vec<u8>>) -> Self {
        TarFile { name: name.into(), contents: contents.into(), declared_size: None, kind: tar::EntryType::Regular }
    }
}

/// A tar archive. Names are written as they are.
pub fn tar(files: &[TarFile]) -> Vec<u8> {
    let mut out = Vec::new();
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..file.name.len()].copy_from_slice(file.name.as_bytes());
        header.set_entry_type(file.kind);
        header.set_mode(0o644);
        header.set_size(file.declared_size.unwrap_or(file.contents.len() as u64));
        header.set_cksum();
        out.extend(header.as_bytes());
        out.extend(&file.contents);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A lossless WebP, RGB or RGBA.
pub fn webp(width: u32, height: u32, color: image_webp::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    image_webp::WebPEncoder::new(&mut out).encode(pixels, width, height, color).unwrap();
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// 24 images of 8×8 with labels, bars that lie or stand, as `bars-images-idx3-ubyte` and `bars-labels-idx1-ubyte`.
pub fn write_bars(folder: &Path) {
    let (n, side) = (24u8, 8u8);
    let pixel = |i: u8, y: u8, x: u8| if (if i.is_multiple_of(2) { y } else { x }) / 2 == i / 2 % 4 { 255 } else { 40 };
    let images: Vec<u8> = (0..n).flat_map(|i| (0..side * side).map(move |p| pixel(i, p / side, p % side))).collect();
    let labels: Vec<u8> = (0..n).map(|i| i % 2).collect();
    std::fs::write(folder.join("bars-images-idx3-ubyte"), idx(&[n as u32, 8, 8], &images)).unwrap();
    std::fs::write(folder.join("bars-labels-idx1-ubyte"), idx(&[n as u32], &labels)).unwrap();
}

/// An IDX file of unsigned bytes.
pub fn idx(dims: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, dims.len() as u8];
    out.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    out.extend(elements);
    out
}

pub fn png(width: u32, height: u32, color: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(color);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(pixels).unwrap();
    writer.finish().unwrap();
    out
}

/// A 2×2 RGB image of one colour.
pub fn rgb_png(color: [u8; 3]) -> Vec<u8> {
    png(2, 2, png::ColorType::Rgb, &color.repeat(4))
}

/// A PNG of nothing but a header chunk that claims a size.
pub fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend([width.to_be_bytes(), height.to_be_bytes()].concat());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&chunk);
    let mut out = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    out.extend(chunk);
    out.extend(crc.sum().to_be_bytes());
    out.extend(b"\0\0\0\x01IDAT\x78");
    out
}
