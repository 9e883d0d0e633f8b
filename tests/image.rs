//! Pictures: what is saved is what was meant.

use std::fs;

use langevin::image::{BatchShape, Image, grid};
use tempfile::tempdir;

/// Decodes with the reference decoder: width, height, grey or not, pixels.
fn decode(bytes: &[u8]) -> (u32, u32, bool, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, info.color_type == png::ColorType::Grayscale, pixels)
}

fn value(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

#[test]
fn every_byte_survives_the_way_through_f32() {
    let values: Vec<f32> = (0..=255).map(value).collect();
    let image = grid(&values, BatchShape::nhwc(1, 16, 16, 1), 1, 0).unwrap();
    assert_eq!(image.pixels(), (0..=255).collect::<Vec<u8>>());
}

#[test]
fn values_out_of_range_are_clamped_and_nan_is_an_error() {
    let image = grid(&[-9.0, 9.0, f32::INFINITY, f32::NEG_INFINITY], BatchShape::nhwc(1, 2, 2, 1), 1, 0).unwrap();
    assert_eq!(image.pixels(), [0, 255, 255, 0]);
    let text = grid(&[0.0, f32::NAN], BatchShape::nhwc(2, 1, 1, 1), 1, 0).unwrap_err().to_string();
    assert!(text.contains("image 1 holds NaN"), "{text}");
}

#[test]
fn grids_place_images_in_rows_in_both_layouts() {
    // Three RGB images of 1×2 pixels in two columns, with one pixel of padding.
    let bytes: Vec<u8> = (1..=18).collect();
    let nhwc: Vec<f32> = bytes.iter().map(|b| value(*b)).collect();
    let planar = |i: usize| [0, 3, 1, 4, 2, 5].map(|k| value(bytes[6 * i + k]));
    let nchw: Vec<f32> = (0..3).flat_map(planar).collect();
    let a = grid(&nhwc, BatchShape::nhwc(3, 1, 2, 3), 2, 1).unwrap();
    let b = grid(&nchw, BatchShape::nchw(3, 3, 1, 2), 2, 1).unwrap();
    assert_eq!(a, b);
    assert_eq!((a.width(), a.height(), a.channels()), (7, 5, 3));
    let row = |y: usize| &a.pixels()[y * 21..(y + 1) * 21];
    assert_eq!(row(0), [0; 21]);
    assert_eq!(row(1), [0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 7, 8, 9, 10, 11, 12, 0, 0, 0]);
    assert_eq!(row(3), [0, 0, 0, 13, 14, 15, 16, 17, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn more_columns_than_images_leave_no_empty_space() {
    let image = grid(&[0.0; 2], BatchShape::nhwc(2, 1, 1, 1), 8, 0).unwrap();
    assert_eq!((image.width(), image.height()), (2, 1));
}

#[test]
fn upscaling_repeats_pixels() {
    let image = Image::new(2, 2, 1, vec![1, 2, 3, 4]).unwrap();
    let large = image.upscale(2).unwrap();
    assert_eq!(large.pixels(), [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4]);
    assert_eq!(image.upscale_to(5).unwrap().width(), 6);
    assert_eq!(image.upscale_to(1).unwrap(), image);
    for factor in [0, 1 << 20, usize::MAX] {
        assert!(image.upscale(factor).unwrap_err().to_string().contains("too large or nothing"));
    }
}

#[test]
fn png_files_hold_the_same_pixels() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.png");
    Image::new(2, 1, 3, vec![1, 2, 3, 4, 5, 6]).unwrap().save_png(&path).unwrap();
    assert_eq!(decode(&fs::read(&path).unwrap()), (2, 1, false, vec![1, 2, 3, 4, 5, 6]));
    Image::new(1, 2, 1, vec![9, 8]).unwrap().save_png(&path).unwrap();
    assert_eq!(decode(&fs::read(&path).unwrap()), (1, 2, true, vec![9, 8]));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn paths_that_cannot_be_written_are_named() {
    let dir = tempdir().unwrap();
    let image = Image::new(1, 1, 1, vec![0]).unwrap();
    let missing = dir.path().join("none/x.png");
    let text = image.save_png(&missing).unwrap_err().to_string();
    assert!(text.contains("none/x.png") && text.contains("No such file"), "{text}");
    assert!(image.save_png(dir.path()).unwrap_err().to_string().contains("is a folder"));
    assert!(image.save_png("").unwrap_err().to_string().contains("does not name a file"));
}

#[test]
fn impossible_pictures_are_errors() {
    let shape = |n, h, w, c| BatchShape::nhwc(n, h, w, c);
    for (result, expected) in [
        (grid(&[], shape(0, 1, 1, 1), 1, 0), "0 images"),
        (grid(&[0.0], shape(1, 1, 1, 1), 0, 0), "0 columns"),
        (grid(&[0.0], shape(1, 2, 1, 1), 1, 0), "does not have 1 elements"),
        (grid(&[0.0; 4], shape(1, 1, 1, 4), 1, 0), "4 channels"),
        (grid(&[], shape(1, 0, 1, 1), 1, 0), "not a size"),
        (grid(&[0.0], shape(usize::MAX, 2, 1, 1), 1, 0), "does not have"),
        (grid(&[0.0], shape(1, 1, 1, 1), 1, usize::MAX), "padding"),
        (grid(&[0.0], shape(1, 1, 1, 1), 1, 1 << 20), "not a size"),
        (Image::new(2, 2, 1, vec![0; 3]), "needs 4 bytes, not 3"),
        (Image::new(1 << 20, 1, 1, vec![]), "not a size"),
    ] {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}
