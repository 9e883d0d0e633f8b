//! Datasets: every kind is read correctly, parts can be chosen, and shuffles are permutations.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use langevin::data::{
    Batch, ClassLimit, Dataset, DatasetOptions, Loader, LoaderConfig, Order, Sequence, permute, to_f32,
};
use langevin::{Error, Result};
use proptest::prelude::*;
use support::*;
use tempfile::tempdir;

const JPEG: &[u8] = include_bytes!("data/cifar-00000.jpg");
/// The same image as another decoder (libjpeg-turbo) sees it.
const JPEG_PIXELS: &[u8] = include_bytes!("data/cifar-00000.rgb");

fn all() -> DatasetOptions {
    DatasetOptions::default()
}

fn from_zip(files: &[ZipFile], options: &DatasetOptions) -> Result<Dataset> {
    Dataset::from_zip(Path::new("d.zip"), &zip(files), options)
}

/// Six one-colour images, of classes 2, 0, 1, 2, 0, 1; image i has red 10·i.
fn six() -> Vec<ZipFile> {
    let image = |i: u8| ZipFile::new(&format!("00/{i}.png"), rgb_png([10 * i, 1, 2]));
    let mut files: Vec<_> = (0..6).map(image).collect();
    let labels: Vec<_> = (0..6).map(|i| format!(r#"["00/{i}.png", {}]"#, [2, 0, 1][i % 3])).collect();
    files.insert(0, ZipFile::new("dataset.json", format!(r#"{{"labels": [{}]}}"#, labels.join(","))));
    files
}

/// All images of these classes.
fn limits(classes: &[u32]) -> Vec<ClassLimit> {
    classes.iter().copied().map(ClassLimit::from).collect()
}

fn reds(dataset: &Dataset) -> Vec<u8> {
    (0..dataset.n).map(|i| dataset.image(i).unwrap()[0]).collect()
}

#[test]
fn a_zip_is_read_in_the_order_of_names_with_its_labels() {
    let mut files = six();
    files.reverse();
    files.push(ZipFile::new("readme.txt", "not an image"));
    files.push(ZipFile::new("__MACOSX/00/._0.png", "not an image either"));
    let d = from_zip(&files, &all()).unwrap();
    assert_eq!((d.n, d.height, d.width, d.channels, d.class_count), (6, 2, 2, 3, 3));
    assert_eq!(reds(&d), [0, 10, 20, 30, 40, 50]);
    assert_eq!(d.labels.as_deref(), Some(&[2, 0, 1, 2, 0, 1][..]));
    assert_eq!(d.image(1).unwrap(), [10, 1, 2].repeat(4));
    assert_eq!(d.image(6), None);
}

#[test]
fn a_part_can_be_chosen_by_number_and_by_class() {
    let load = |limit, classes: Option<&[u32]>| {
        from_zip(&six(), &DatasetOptions { limit, classes: classes.map(limits), ..all() })
    };
    let d = load(Some(2), None).unwrap();
    assert_eq!((reds(&d), d.labels.clone().unwrap(), d.class_count), (vec![0, 10], vec![2, 0], 3));
    let d = load(None, Some(&[0, 1])).unwrap();
    assert_eq!((reds(&d), d.labels.clone().unwrap(), d.class_count), (vec![10, 20, 40, 50], vec![0, 1, 0, 1], 3));
    let d = load(Some(1), Some(&[1])).unwrap();
    assert_eq!((reds(&d), d.labels.clone().unwrap()), (vec![20], vec![1]));
    assert_eq!(load(Some(100), None).unwrap().n, 6);
    assert!(load(Some(0), None).unwrap_err().to_string().starts_with("limit:"));
    assert!(load(None, Some(&[7])).unwrap_err().to_string().contains("classes [7] leave no image of 6"));
    let some = from_zip(&six(), &DatasetOptions { classes: ClassLimit::list("2:1, 0").unwrap(), ..all() }).unwrap();
    assert_eq!((reds(&some), some.labels.unwrap(), some.class_count), (vec![0, 10, 40], vec![2, 0, 0], 3));
    assert_eq!(ClassLimit::list(" ").unwrap(), None);
    for bad in ["x", "1:", "1:0", "1:x", "-1", "1:2:3"] {
        assert!(ClassLimit::list(bad).unwrap_err().to_string().contains(bad), "{bad}");
    }
    let unlabelled = from_zip(&six()[1..], &DatasetOptions { classes: Some(limits(&[0])), ..all() });
    assert!(unlabelled.unwrap_err().to_string().contains("no labels"));
}

#[test]
fn a_part_of_a_dataset_is_one() {
    let whole = from_zip(&six(), &all()).unwrap();
    let part = whole.part(2..5).unwrap();
    assert_eq!((part.n, reds(&part), part.labels), (3, vec![20, 30, 40], Some(vec![1, 2, 0])));
    assert_eq!((part.class_count, part.width), (whole.class_count, whole.width));
    assert_eq!(whole.part(0..6).unwrap().fingerprint(), whole.fingerprint());
    assert_eq!(whole.part(6..6).unwrap().n, 0);
    assert!(whole.part(4..7).unwrap_err().to_string().contains('6'));
}

#[test]
fn images_that_are_not_chosen_are_not_decoded() {
    let mut files = six();
    files[6].contents = b"broken".to_vec();
    assert_eq!(from_zip(&files, &DatasetOptions { limit: Some(5), ..all() }).unwrap().n, 5);
    assert!(from_zip(&files, &all()).unwrap_err().to_string().contains("`00/5.png`"));
}

#[test]
fn without_labels_there_are_none() {
    for files in [&six()[1..], &[&[ZipFile::new("dataset.json", r#"{"labels": null}"#)], &six()[1..]].concat()] {
        let d = from_zip(files, &all()).unwrap();
        assert_eq!((d.n, d.labels, d.class_count), (6, None, 0));
    }
}

#[test]
fn deflated_and_zip64_archives_of_other_writers_are_read() {
    let d = Dataset::from_zip(Path::new("z"), include_bytes!("data/zip64.zip"), &all()).unwrap();
    let pixels = [255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30];
    assert_eq!(d.images, pixels.repeat(2));
    assert_eq!((d.labels.unwrap(), d.class_count), (vec![3, 1], 4));
}

#[test]
fn jpegs_agree_with_another_decoder() {
    let d = from_zip(&[ZipFile::new("a.jpeg", JPEG)], &all()).unwrap();
    assert_eq!((d.height, d.width, d.channels), (32, 32, 3));
    let worst = d.images.iter().zip(JPEG_PIXELS).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= 3, "differs by {worst}");
}

#[test]
fn pngs_of_every_kind_become_rgb_or_grey() {
    let image = |color, pixels: &[u8]| {
        from_zip(&[ZipFile::new("a.png", png(2, 1, color, pixels))], &all()).map(|d| (d.channels, d.images))
    };
    assert_eq!(image(png::ColorType::Rgb, &[1, 2, 3, 4, 5, 6]).unwrap(), (3, vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(image(png::ColorType::Grayscale, &[7, 8]).unwrap(), (1, vec![7, 8]));
    assert_eq!(image(png::ColorType::GrayscaleAlpha, &[7, 255, 8, 255]).unwrap(), (1, vec![7, 8]));
    assert_eq!(image(png::ColorType::Rgba, &[1, 2, 3, 255, 4, 5, 6, 255]).unwrap(), (3, vec![1, 2, 3, 4, 5, 6]));
    assert!(image(png::ColorType::Rgba, &[1, 2, 3, 255, 4, 5, 6, 254]).is_err());
}

#[test]
fn palettes_and_sixteen_bits_are_expanded() {
    let mut indexed = Vec::new();
    let mut encoder = png::Encoder::new(&mut indexed, 2, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![9, 8, 7, 1, 2, 3]);
    encoder.write_header().unwrap().write_image_data(&[1, 0]).unwrap();
    let mut deep = Vec::new();
    let mut encoder = png::Encoder::new(&mut deep, 2, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.write_header().unwrap().write_image_data(&[1, 0, 2, 0, 3, 0, 9, 255, 8, 0, 7, 0]).unwrap();
    let d = from_zip(&[ZipFile::new("a.png", indexed), ZipFile::new("b.png", deep)], &all()).unwrap();
    assert_eq!(d.images, [1, 2, 3, 9, 8, 7, 1, 2, 3, 9, 8, 7]);
}

#[test]
fn open_recognises_every_kind() {
    let dir = tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name)
    };
    let n = |path: &Path| Dataset::open(path, &all()).map(|d| d.n);
    assert_eq!(n(&put("any.name", &zip(&six()))).unwrap(), 6);
    assert_eq!(n(&put("shard", &tar(&[TarFile::new("a.png", rgb_png([1, 2, 3]))]))).unwrap(), 1);
    assert_eq!(n(&put("packed-shard", &gzip(&tar(&[TarFile::new("a.png", rgb_png([1, 2, 3]))])))).unwrap(), 1);
    assert_eq!(n(&put("raw", &idx(&[2, 2, 3], &[7; 12]))).unwrap(), 2);
    assert_eq!(n(&put("packed", &gzip(&idx(&[3, 2, 2], &[7; 12])))).unwrap(), 3);
    assert_eq!(n(&put("batch.bin", &[1; 3073 * 4])).unwrap(), 4);
    let text = n(&put("notes.txt", b"hello")).unwrap_err().to_string();
    assert!(text.contains("notes.txt") && text.contains("neither a zip"), "{text}");
    assert!(n(&put("empty", b"")).unwrap_err().to_string().contains("neither a zip"));
    assert!(matches!(n(&dir.path().join("missing")), Err(Error::Io { .. })));
}

#[test]
fn idx_labels_are_found_beside_the_images() {
    let images = idx(&[3, 1, 2], &[1, 2, 3, 4, 5, 6]);
    let labels = idx(&[3], &[4, 0, 2]);
    for (images_name, labels_name, packed) in [
        ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", true),
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", false),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", false),
    ] {
        let dir = tempdir().unwrap();
        let pack = |bytes: &[u8]| if packed { gzip(bytes) } else { bytes.to_vec() };
        let path = dir.path().join(images_name);
        fs::write(&path, pack(&images)).unwrap();
        let d = Dataset::open(&path, &all()).unwrap();
        assert_eq!((d.n, d.labels, d.class_count), (3, None, 0));
        fs::write(dir.path().join(labels_name), pack(&labels)).unwrap();
        let d = Dataset::open(&path, &all()).unwrap();
        assert_eq!((d.height, d.width, d.channels, d.class_count), (1, 2, 1, 5));
        assert_eq!((&d.images[..], &d.labels.unwrap()[..]), (&[1, 2, 3, 4, 5, 6][..], &[4, 0, 2][..]));
        let part = Dataset::open(&path, &DatasetOptions { classes: Some(limits(&[0, 2])), ..all() }).unwrap();
        assert_eq!((&part.images[..], &part.labels.unwrap()[..]), (&[3, 4, 5, 6][..], &[0, 2][..]));
        fs::write(dir.path().join(labels_name), pack(&idx(&[2], &[4, 0]))).unwrap();
        let text = Dataset::open(&path, &all()).unwrap_err().to_string();
        assert!(text.contains("3 images, but 2 labels"), "{text}");
        fs::write(dir.path().join(labels_name), "junk").unwrap();
        let text = Dataset::open(&path, &all()).unwrap_err().to_string();
        assert!(text.contains(labels_name) && text.contains("labels: not an IDX file"), "{text}");
    }
}

#[test]
fn cifar_batches_are_turned_to_channels_last() {
    let mut record = vec![7u8];
    for channel in 0..3u8 {
        record.extend((0..1024).map(|i| (i % 64) as u8 + 64 * channel));
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("test_batch.bin");
    fs::write(&path, record.repeat(2)).unwrap();
    let d = Dataset::open(&path, &all()).unwrap();
    assert_eq!((d.n, d.height, d.width, d.channels, d.class_count), (2, 32, 32, 3, 10));
    assert_eq!(d.image(1).unwrap()[3 * 33..][..3], [33, 97, 161]);
    assert_eq!(d.labels.unwrap(), [7, 7]);
    fs::write(&path, &record[1..]).unwrap();
    assert!(Dataset::open(&path, &all()).unwrap_err().to_string().contains("not a multiple of 3073"));
    record[0] = 10;
    fs::write(&path, &record).unwrap();
    assert!(Dataset::open(&path, &all()).unwrap_err().to_string().contains("image 0 has label 10"));
}

#[test]
fn folders_of_class_folders_and_unpacked_zips_are_read() {
    let dir = tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put("dog/0.png", &rgb_png([30, 0, 0]));
    put("cat/1.png", &rgb_png([20, 0, 0]));
    put("cat/0.png", &rgb_png([10, 0, 0]));
    put("cat/notes.txt", b"x");
    let d = Dataset::open(dir.path(), &all()).unwrap();
    assert_eq!((reds(&d), d.labels.unwrap(), d.class_count), (vec![10, 20, 30], vec![0, 0, 1], 2));
    put("dataset.json", br#"{"labels":[["cat/0.png",5],["cat/1.png",6],["dog/0.png",7]]}"#);
    assert_eq!(Dataset::open(dir.path(), &all()).unwrap().labels.unwrap(), [5, 6, 7]);
    put("dataset.json", b"{}");
    assert_eq!(Dataset::open(dir.path(), &all()).unwrap().labels, None);
    put("cat/1.png", b"x");
    let text = Dataset::open(dir.path(), &all()).unwrap_err().to_string();
    assert!(text.contains("image `cat/1.png`"), "{text}");
    let empty = tempdir().unwrap();
    assert!(Dataset::open(empty.path(), &all()).unwrap_err().to_string().contains("no PNG, JPEG or WebP"));
}

#[test]
fn batches_are_scaled_to_minus_one_to_one() {
    let d = from_zip(&six(), &all()).unwrap();
    let mut out = vec![9.0; 2 * 12];
    d.batch_f32_into(&[5, 0], &mut out).unwrap();
    assert_eq!(out[0], 50.0 / 127.5 - 1.0);
    assert_eq!(out[12], -1.0);
    assert!(d.batch_f32_into(&[0], &mut out).unwrap_err().to_string().contains("12 elements are needed"));
    assert!(d.batch_f32_into(&[0, 6], &mut out).unwrap_err().to_string().contains("6 is not below"));
    let mut ends = [0.0; 2];
    to_f32(&[0, 255], &mut ends);
    assert_eq!(ends, [-1.0, 1.0]);
}

#[test]
fn memory_is_limited() {
    let text = from_zip(&six(), &DatasetOptions { max_bytes: 71, ..all() }).unwrap_err().to_string();
    assert!(text.contains("6 images of 12 bytes") && text.contains("max_bytes"), "{text}");
    assert!(from_zip(&six(), &DatasetOptions { max_bytes: 72, ..all() }).is_ok());
}

#[test]
fn webps_agree_with_another_decoder() {
    let d = from_zip(&[ZipFile::new("a.webp", *include_bytes!("data/cifar-00000.webp"))], &all()).unwrap();
    assert_eq!((d.height, d.width, d.channels), (32, 32, 3));
    let worst = d.images.iter().zip(include_bytes!("data/cifar-00000.webp.rgb")).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst <= Some(1), "differs by {worst:?} from libwebp");
    let image = |color, pixels: &[u8]| from_zip(&[ZipFile::new("a.webp", webp(2, 1, color, pixels))], &all());
    let (rgb, rgba) = (image_webp::ColorType::Rgb8, image_webp::ColorType::Rgba8);
    assert_eq!(image(rgb, &[1, 2, 3, 4, 5, 6]).unwrap().images, [1, 2, 3, 4, 5, 6]);
    assert_eq!(image(rgba, &[1, 2, 3, 255, 4, 5, 6, 255]).unwrap().images, [1, 2, 3, 4, 5, 6]);
    let text = image(rgba, &[1, 2, 3, 255, 4, 5, 6, 254]).unwrap_err().to_string();
    assert!(text.contains("transparent"), "{text}");
}

fn from_tar(files: &[TarFile], options: &DatasetOptions) -> Result<Dataset> {
    Dataset::from_tar(Path::new("d.tar"), &tar(files), options)
}

fn red(name: &str, red: u8) -> TarFile {
    TarFile::new(name, rgb_png([red, 0, 0]))
}

#[test]
fn tars_are_read_in_their_own_order_with_classes_of_either_kind() {
    let d = from_tar(
        &[
            TarFile { kind: tar::EntryType::Directory, ..TarFile::new("x/", "") },
            TarFile::new("x/b.cls", " 3\n"),
            red("x/b.png", 10),
            TarFile::new("x/b.txt", "a caption"),
            red("x/a.PNG", 20),
            red("y/a.depth.png", 77),
            red("y/a.png", 30),
            TarFile::new("x/a.json", r#"{"caption": "a cat", "label": "cat", "class": 5}"#),
            TarFile::new("y/a.json", r#"{"label": null, "cls": 0}"#),
            TarFile::new("meta.json", r#"{"count": 3}"#),
        ],
        &all(),
    )
    .unwrap();
    assert_eq!((reds(&d), d.labels.unwrap(), d.class_count), (vec![10, 20, 30], vec![3, 5, 0], 6));
    let unlabelled = [red("a.png", 1), TarFile::new("a.json", r#"{"label": "cat"}"#)];
    assert_eq!(from_tar(&unlabelled, &all()).unwrap().labels, None);
}

#[test]
fn shards_are_read_in_the_order_of_their_names() {
    let dir = tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("s-1.tar", &tar(&[red("0.png", 30), TarFile::new("0.cls", "2")]));
    put(
        "s-0.tar.gz",
        &gzip(&tar(&[red("0.png", 10), TarFile::new("0.cls", "1"), red("1.png", 20), TarFile::new("1.cls", "0")])),
    );
    put("s-2.tgz", &gzip(&tar(&[red("0.png", 40), TarFile::new("0.cls", "0")])));
    put("notes.txt", b"x");
    let d = Dataset::open(dir.path(), &all()).unwrap();
    assert_eq!((reds(&d), d.labels.unwrap()), (vec![10, 20, 30, 40], vec![1, 0, 2, 0]));
    let part = Dataset::open(dir.path(), &DatasetOptions { classes: Some(limits(&[0])), ..all() }).unwrap();
    assert_eq!((reds(&part), part.labels.unwrap()), (vec![20, 40], vec![0, 0]));
    put("s-1.tar", &tar(&[red("0.png", 30)]));
    let text = Dataset::open(dir.path(), &all()).unwrap_err().to_string();
    assert!(text.contains("sample `s-1.tar/0` has no class"), "{text}");
    put("s-1.tar", &tar(&[TarFile::new("0.png", "x"), TarFile::new("0.cls", "2")]));
    let text = Dataset::open(dir.path(), &all()).unwrap_err().to_string();
    assert!(text.contains("image `s-1.tar/0.png`"), "{text}");
    put("s-1.tar", b"x");
    let text = Dataset::open(dir.path(), &all()).unwrap_err().to_string();
    assert!(text.contains("s-1.tar: not a complete tar"), "{text}");
}

/// Twelve images of which some cannot be used: 1 and 4 are broken, 6 is empty, 9 has another size.
fn partly_broken() -> Vec<ZipFile> {
    let image = |i: u8| match i {
        1 | 4 => rgb_png([0; 3])[..60].to_vec(),
        6 => Vec::new(),
        9 => png(3, 1, png::ColorType::Rgb, &[9; 9]),
        _ => rgb_png([i, 0, 0]),
    };
    let labels: Vec<_> = (0..12).map(|i| format!(r#"["{i:02}.png",{i}]"#)).collect();
    let mut files: Vec<_> = (0..12).map(|i| ZipFile::new(&format!("{i:02}.png"), image(i))).collect();
    files.push(ZipFile::new("dataset.json", format!(r#"{{"labels":[{}]}}"#, labels.join(","))));
    files
}

#[test]
fn unusable_images_are_left_out_with_their_labels_or_refused() {
    let lenient = DatasetOptions { strict: false, ..all() };
    let d = from_zip(&partly_broken(), &lenient).unwrap();
    let good = [0u8, 2, 3, 5, 7, 8, 10, 11];
    assert_eq!((d.n, reds(&d), d.images.len()), (8, good.to_vec(), 8 * 12));
    assert_eq!(d.labels.as_deref().unwrap(), good.map(u32::from));
    assert_eq!(d.class_count, 12);
    let names: Vec<_> = d.skipped.first.iter().map(|s| s.name.as_str()).collect();
    assert_eq!((d.skipped.count, names), (4, vec!["01.png", "04.png", "06.png", "09.png"]));
    let line = d.skipped.to_string();
    for part in ["4 skipped: `01.png` broken PNG", "`06.png` is empty", "`09.png` is 3x1, but the first image is 2x2"] {
        assert!(line.contains(part), "{line}");
    }
    let text = from_zip(&partly_broken(), &all()).unwrap_err().to_string();
    assert!(text.contains("`01.png`"), "{text}");
    assert_eq!(from_zip(&six(), &lenient).unwrap().skipped, Default::default());
}

#[test]
fn a_broken_first_image_does_not_set_the_size() {
    let mut wide = png(9, 9, png::ColorType::Rgb, &[7; 243]);
    wide.truncate(wide.len() - 24);
    let files =
        [ZipFile::new("0.png", wide), ZipFile::new("1.png", rgb_png([1; 3])), ZipFile::new("2.png", rgb_png([2; 3]))];
    let lenient = DatasetOptions { strict: false, ..all() };
    let d = from_zip(&files, &lenient).unwrap();
    assert_eq!((d.n, d.width, d.skipped.count), (2, 2, 1));
    let huge = [ZipFile::new("0.png", png_claiming(16_000, 5_000)), files[1].clone()];
    let d = from_zip(&huge, &DatasetOptions { max_bytes: 1 << 20, ..lenient.clone() }).unwrap();
    assert_eq!((d.n, d.width, d.skipped.count), (1, 2, 1));
    let text = from_zip(&files[..1], &lenient).unwrap_err().to_string();
    assert!(text.contains("none of 1 images can be used; the first is `0.png`: broken PNG"), "{text}");
}

#[test]
fn of_many_unusable_images_a_few_are_named() {
    let mut files: Vec<_> = (0..50).map(|i| ZipFile::new(&format!("{i:02}.png"), "x")).collect();
    files.push(ZipFile::new("zz.png", rgb_png([1; 3])));
    let d = from_zip(&files, &DatasetOptions { strict: false, ..all() }).unwrap();
    assert_eq!((d.n, d.skipped.count), (1, 50));
    assert!(d.skipped.first.len() < 10 && d.skipped.to_string().len() < 500, "{}", d.skipped);
    assert!(d.skipped.to_string().ends_with("; …"));
}

#[test]
fn images_are_resized_and_cropped_to_squares() {
    let pixels = include_bytes!("data/cifar-00000.rgb");
    // 32 wide and 21 high: PIL's `resize((16, 16), LANCZOS, box=(5.5, 0, 26.5, 21))`.
    let files = [ZipFile::new("a.png", png(32, 21, png::ColorType::Rgb, &pixels[..32 * 21 * 3]))];
    let sixteen = DatasetOptions { resize: Some(16), ..all() };
    let rgb = from_zip(&files, &sixteen).unwrap();
    assert_eq!((rgb.height, rgb.width, rgb.channels), (16, 16, 3));
    let worst =
        rgb.images.iter().zip(include_bytes!("data/cifar-00000-resized.rgb")).map(|(a, b)| a.abs_diff(*b)).max();
    // Both round to bytes between the two directions, but not in the same order of directions.
    assert!(worst <= Some(3), "differs by {worst:?} from PIL");

    let grey = |w: u32, h: u32| {
        ZipFile::new(&format!("{w}x{h}.png"), png(w, h, png::ColorType::Grayscale, &vec![200; (w * h) as usize]))
    };
    let d = from_zip(&[grey(16, 16), grey(40, 20), grey(3, 7), grey(1, 50), grey(100, 16)], &sixteen).unwrap();
    assert_eq!((d.n, d.channels, d.skipped.count), (5, 1, 0));
    assert!(d.images.iter().all(|p| *p == 200), "one colour stays one colour");
    // RGB is resized as it was without grey images before it.
    let mixed = from_zip(&[grey(16, 16), grey(40, 20), files[0].clone()], &sixteen).unwrap();
    assert_eq!((mixed.n, mixed.channels, mixed.image(2)), (3, 3, Some(&rgb.images[..])));
    assert!(mixed.images[..2 * 768].iter().all(|p| *p == 200));
    for side in [0, 16_385] {
        let text = from_zip(&files, &DatasetOptions { resize: Some(side), ..all() }).unwrap_err().to_string();
        assert!(text.starts_with("resize:"), "{text}");
    }
}

/// One image each: grey, grey with alpha, RGB, RGBA, a palette.
fn of_every_kind() -> [ZipFile; 5] {
    let mut indexed = Vec::new();
    let mut encoder = png::Encoder::new(&mut indexed, 2, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![255, 0, 0, 0, 0, 255]);
    encoder.write_header().unwrap().write_image_data(&[1, 0]).unwrap();
    [
        png(2, 1, png::ColorType::Grayscale, &[7, 8]),
        png(2, 1, png::ColorType::GrayscaleAlpha, &[9, 255, 10, 255]),
        png(2, 1, png::ColorType::Rgb, &[255, 255, 255, 0, 255, 0]),
        png(2, 1, png::ColorType::Rgba, &[1, 2, 3, 255, 100, 100, 100, 255]),
        indexed,
    ]
    .map(|bytes| ZipFile::new(&format!("{}.png", bytes.len()), bytes))
}

#[test]
fn a_dataset_is_rgb_if_any_image_is_or_what_was_asked_for() {
    let named = |order: &[usize]| -> Vec<ZipFile> {
        let name = |(at, i): (usize, &usize)| ZipFile { name: format!("{at}.png"), ..of_every_kind()[*i].clone() };
        order.iter().enumerate().map(name).collect()
    };
    let rgb = [
        [7, 7, 7, 8, 8, 8],
        [9, 9, 9, 10, 10, 10],
        [255, 255, 255, 0, 255, 0],
        [1, 2, 3, 100, 100, 100],
        [0, 0, 255, 255, 0, 0],
    ];
    // PIL's `convert("L")`.
    let grey = [[7, 8], [9, 10], [255, 150], [2, 100], [29, 76]];
    for order in [[0, 1, 2, 3, 4], [3, 2, 1, 0, 4], [1, 0, 4, 3, 2]] {
        for strict in [true, false] {
            let options = DatasetOptions { strict, ..all() };
            let d = from_zip(&named(&order), &options).unwrap();
            assert_eq!((d.n, d.channels, d.skipped.count), (5, 3, 0));
            assert_eq!(d.images, order.map(|i| rgb[i]).concat());
            let d = from_zip(&named(&order), &DatasetOptions { channels: Some(1), ..options.clone() }).unwrap();
            assert_eq!((d.channels, d.images), (1, order.map(|i| grey[i]).concat()));
            let d = from_zip(&named(&[0, 1]), &options).unwrap();
            assert_eq!((d.channels, &d.images[..]), (1, &[7, 8, 9, 10][..]), "no image is RGB");
            let d = from_zip(&named(&[0, 1]), &DatasetOptions { channels: Some(3), ..options }).unwrap();
            assert_eq!((d.channels, d.images), (3, [rgb[0], rgb[1]].concat()));
        }
    }
    let text = from_zip(&named(&[0]), &DatasetOptions { channels: Some(2), ..all() }).unwrap_err().to_string();
    assert!(text.starts_with("channels: 2"), "{text}");
}

/// RGB images that are left out do not make a dataset RGB.
#[test]
fn only_usable_images_say_what_a_dataset_is() {
    let grey = |name: &str| ZipFile::new(name, png(2, 2, png::ColorType::Grayscale, &[5; 4]));
    let mut cut = rgb_png([1; 3]);
    cut.truncate(cut.len() - 20);
    let wide = png(3, 1, png::ColorType::Rgb, &[9; 9]);
    let files = [grey("0.png"), ZipFile::new("1.png", cut), ZipFile::new("2.png", wide), grey("3.png")];
    let lenient = DatasetOptions { strict: false, ..all() };
    let d = from_zip(&files, &lenient).unwrap();
    assert_eq!((d.n, d.channels, d.skipped.count), (2, 1, 2));
    let d = from_zip(&files, &DatasetOptions { resize: Some(2), ..lenient }).unwrap();
    assert_eq!((d.n, d.channels, d.skipped.count), (3, 3, 1));
    assert!(from_zip(&files, &all()).is_err());
}

#[test]
fn raw_formats_are_converted_too() {
    let options = |channels| DatasetOptions { channels: Some(channels), ..all() };
    let images = idx(&[2, 1, 2], &[10, 20, 30, 40]);
    let d = Dataset::from_idx(Path::new("i"), &images, None, &options(3)).unwrap();
    assert_eq!((d.channels, &d.images[..]), (3, &[10, 10, 10, 20, 20, 20, 30, 30, 30, 40, 40, 40][..]));
    let plain = Dataset::from_idx(Path::new("i"), &images, None, &options(1)).unwrap();
    assert_eq!((plain.channels, &plain.images[..]), (1, &[10, 20, 30, 40][..]));
    assert_ne!(plain.fingerprint(), d.fingerprint());
    let resized = DatasetOptions { resize: Some(1), ..options(3) };
    let d = Dataset::from_idx(Path::new("i"), &idx(&[1, 2, 2], &[9; 4]), None, &resized).unwrap();
    assert_eq!((d.channels, d.images), (3, vec![9; 3]));
}

#[test]
fn an_image_of_the_wanted_size_is_not_touched() {
    let pixels = include_bytes!("data/cifar-00000.rgb");
    let files = [ZipFile::new("a.png", png(32, 32, png::ColorType::Rgb, pixels))];
    assert_eq!(from_zip(&files, &DatasetOptions { resize: Some(32), ..all() }).unwrap().images, pixels);
    // The centre of the longer side: left and right thirds are dropped.
    let wide: Vec<u8> = (0..4 * 12).map(|i| [10, 20, 30][i % 12 / 4]).collect();
    let files = [ZipFile::new("a.png", png(12, 4, png::ColorType::Grayscale, &wide))];
    assert_eq!(from_zip(&files, &DatasetOptions { resize: Some(4), ..all() }).unwrap().images, [20; 16]);
}

#[test]
fn raw_formats_are_resized_too() {
    let options = DatasetOptions { resize: Some(5), ..all() };
    let images = idx(&[3, 2, 4], &[[10; 8], [20; 8], [30; 8]].concat());
    let d = Dataset::from_idx(Path::new("i"), &images, Some(&idx(&[3], &[1, 0, 2])), &options).unwrap();
    assert_eq!(
        (d.n, d.height, d.width, reds(&d), d.labels.as_deref().unwrap()),
        (3, 5, 5, vec![10, 20, 30], &[1, 0, 2][..])
    );
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("b.bin"), [1; 3073 * 2]).unwrap();
    let d = Dataset::open(dir.path().join("b.bin"), &options).unwrap();
    assert_eq!((d.height, d.width, d.images), (5, 5, vec![1; 2 * 75]));
    let text = Dataset::from_idx(Path::new("i"), &images, None, &DatasetOptions { max_bytes: 74, ..options });
    assert!(text.unwrap_err().to_string().contains("3 images of 25 bytes"));
}

#[test]
fn the_fingerprint_sees_every_change() {
    let d = from_zip(&six(), &all()).unwrap();
    let mut prints = vec![d.fingerprint()];
    assert_eq!(from_zip(&six(), &all()).unwrap().fingerprint(), prints[0]);
    let changes: [fn(&mut Dataset); 7] = [
        |d| d.images[40] ^= 1,
        |d| d.images.swap(0, 12),
        |d| d.labels.as_mut().unwrap()[3] = 1,
        |d| d.labels = None,
        |d| (d.height, d.width) = (1, 4),
        |d| d.class_count += 1,
        |d| (d.n, d.images) = (5, d.images[..60].to_vec()),
    ];
    for change in changes {
        let mut other = d.clone();
        change(&mut other);
        prints.push(other.fingerprint());
    }
    prints.sort_unstable();
    prints.dedup();
    assert_eq!(prints.len(), 8);
    // Written down, so that a change of the function, which would make runs refuse to resume, does not go unnoticed.
    assert_eq!(format!("{:032x}", d.fingerprint()), "6a5403e56de736e247d02f79b73d8fda");
}

fn is_permutation(n: u64, epoch: u64, seed: u64) -> bool {
    let mut seen = vec![false; n as usize];
    (0..n).all(|i| {
        let at = permute(i, epoch, seed, n) as usize;
        at < seen.len() && !std::mem::replace(&mut seen[at], true)
    })
}

#[test]
fn small_shuffles_are_permutations() {
    for n in 0..=300 {
        for seed in 0..4 {
            assert!(is_permutation(n, seed, 7 * seed), "n = {n}, seed = {seed}");
        }
    }
}

#[test]
fn shuffles_differ_between_epochs_and_seeds_and_repeat() {
    let order = |epoch, seed| (0..1000).map(|i| permute(i, epoch, seed, 1000)).collect::<Vec<_>>();
    assert_eq!(order(3, 5), order(3, 5));
    let orders = [order(0, 0), order(1, 0), order(0, 1), order(1, 1), order(2, 0)];
    for (i, a) in orders.iter().enumerate() {
        let same = |b: &[u64]| a.iter().zip(b).filter(|(x, y)| x == y).count();
        assert!(same(&(0..1000).collect::<Vec<_>>()) < 12, "order {i} is close to none");
        assert!(orders[..i].iter().all(|b| same(b) < 12), "order {i} is close to an earlier one");
    }
}

#[test]
fn every_position_sees_every_image_equally_often() {
    // 4000 epochs of 10 images: each of the 100 pairs is expected 400 times, with a standard deviation of 19.
    let mut counts = [[0u32; 10]; 10];
    for epoch in 0..4000 {
        for (i, row) in counts.iter_mut().enumerate() {
            row[permute(i as u64, epoch, 42, 10) as usize] += 1;
        }
    }
    assert!(counts.iter().flatten().all(|c| (305..=495).contains(c)), "{counts:?}");
}

#[test]
fn neighbours_are_torn_apart() {
    let n = 50_000;
    let near = (1..n).filter(|i| permute(*i, 0, 1, n).abs_diff(permute(i - 1, 0, 1, n)) < n / 100).count();
    // About 2 % of random pairs are within 1 % of each other.
    assert!((700..1300).contains(&near), "{near}");
}

/// A dataset of `labels.len()` images of 2×3 pixels, each with its index in every channel.
fn numbered(labels: &[u32], channels: usize) -> Dataset {
    let n = labels.len();
    let pixel = |i: usize, p: usize| (i * 7 + p) as u8;
    Dataset {
        images: (0..n).flat_map(|i| (0..6 * channels).map(move |p| pixel(i, p))).collect(),
        n,
        height: 2,
        width: 3,
        channels,
        class_count: labels.iter().max().map_or(0, |l| *l as usize + 1),
        labels: Some(labels.to_vec()),
        ..Dataset::default()
    }
}

/// Labels of `counts[c]` images of class c, mixed.
fn mixed(counts: &[usize]) -> Vec<u32> {
    let all: Vec<u32> = counts.iter().zip(0..).flat_map(|(n, class)| std::iter::repeat_n(class, *n)).collect();
    (0..all.len() as u64).map(|i| all[permute(i, 0, 99, all.len() as u64) as usize]).collect()
}

#[test]
fn the_plain_order_is_the_permutation_of_each_epoch() {
    let sequence = Sequence::new(Order::Plain, &numbered(&[0; 50], 1), 9).unwrap();
    for s in [0, 1, 49, 50, 51, 12_345_678_901] {
        assert_eq!(sequence.index(s) as u64, permute(s % 50, s / 50, 9, 50));
    }
}

#[test]
fn a_balanced_order_needs_labels_and_any_order_images() {
    let unlabelled = Dataset { labels: None, ..numbered(&[0; 4], 1) };
    let text = Sequence::new(Order::ClassBalanced, &unlabelled, 0).unwrap_err().to_string();
    assert!(text.starts_with("order:") && text.contains("needs labels"), "{text}");
    assert!(Sequence::new(Order::Plain, &Dataset::default(), 0).unwrap_err().to_string().contains("no images"));
    assert_eq!("class-balanced".parse::<Order>().unwrap(), Order::ClassBalanced);
    assert_eq!("plain".parse::<Order>().unwrap(), Order::Plain);
    assert!("random".parse::<Order>().unwrap_err().to_string().contains("`random`"));
}

#[test]
fn classes_of_one_size_are_permuted_apart() {
    // Two classes of 100 images each, in blocks: the same permutation of both would show as equal positions.
    let labels: Vec<u32> = (0..200).map(|i| i / 100).collect();
    let sequence = Sequence::new(Order::ClassBalanced, &numbered(&labels, 1), 3).unwrap();
    let position = |round: u64| [0, 1].map(|p| sequence.index(2 * round + p) % 100);
    let same = (0..100).filter(|r| position(*r)[0] == position(*r)[1]).count();
    assert!(same < 10, "{same} of 100 rounds show the same position of both classes");
    let zero_first = (0..100).filter(|r| labels[sequence.index(2 * r)] == 0).count();
    assert!((30..70).contains(&zero_first), "class 0 comes first in {zero_first} of 100 rounds");
}

/// What a loader yields for `samples`, in batches of `batch`.
fn loaded(data: &Arc<Dataset>, config: LoaderConfig, samples: u64) -> Vec<Batch> {
    let mut loader = Loader::new(data.clone(), config).unwrap();
    let batches = samples / config.batch as u64;
    (0..batches)
        .map(|_| {
            let batch = loader.next().unwrap();
            loader.recycle(batch.clone());
            batch
        })
        .collect()
}

fn pixels(batches: &[Batch]) -> Vec<u32> {
    batches.iter().flat_map(|b| b.images.iter().map(|v| v.to_bits())).collect()
}

fn classes(batches: &[Batch]) -> Vec<u32> {
    batches.iter().flat_map(|b| b.labels.clone().unwrap()).collect()
}

#[test]
fn batches_hold_the_images_of_the_order() {
    let data = Arc::new(numbered(&mixed(&[5, 9, 6]), 3));
    for order in [Order::Plain, Order::ClassBalanced] {
        let config = LoaderConfig { batch: 7, order, seed: 4, ..LoaderConfig::default() };
        let sequence = Sequence::new(order, &data, 4).unwrap();
        for (i, batch) in loaded(&data, config, 70).iter().enumerate() {
            let first = 7 * i as u64;
            assert_eq!(batch.samples, first..first + 7);
            let indices: Vec<usize> = batch.samples.clone().map(|s| sequence.index(s)).collect();
            let mut expected = vec![0.0; 7 * 18];
            data.batch_f32_into(&indices, &mut expected).unwrap();
            assert_eq!(batch.images, expected);
            let labels: Vec<u32> = indices.iter().map(|i| data.labels.as_ref().unwrap()[*i]).collect();
            assert_eq!(batch.labels.as_ref().unwrap(), &labels);
        }
    }
    let unlabelled = Arc::new(Dataset { labels: None, ..Dataset::clone(&data) });
    assert_eq!(loaded(&unlabelled, LoaderConfig { batch: 4, ..LoaderConfig::default() }, 4)[0].labels, None);
}

#[test]
fn flips_mirror_rows_with_their_probability() {
    let data = Arc::new(numbered(&mixed(&[30, 10]), 3));
    let run = |flip, seed| {
        let config = LoaderConfig { batch: 40, flip, seed, ..LoaderConfig::default() };
        loaded(&data, config, 4000).into_iter().flat_map(|b| b.images).collect::<Vec<f32>>()
    };
    let (plain, always, half) = (run(0.0, 1), run(1.0, 1), run(0.5, 1));
    let mut flips = 0;
    for ((plain, always), half) in plain.chunks(18).zip(always.chunks(18)).zip(half.chunks(18)) {
        let rows = plain.chunks(9).flat_map(|row| row.chunks(3).rev().flatten().copied());
        assert_eq!(rows.collect::<Vec<f32>>(), always);
        assert!(half == plain || half == always);
        flips += usize::from(half == always);
    }
    // 4000 throws of a coin: five standard deviations are 158.
    assert!((1842..2158).contains(&flips), "{flips}");
    let quarter = run(0.25, 1).chunks(18).zip(plain.chunks(18)).filter(|(a, b)| a != b).count();
    assert!((863..1137).contains(&quarter), "{quarter}");
}

#[test]
fn a_loader_refuses_what_does_not_fit() {
    let data = Arc::new(numbered(&[0, 1, 2, 3], 1));
    let good = LoaderConfig { batch: 4, ..LoaderConfig::default() };
    let refused = |data: &Dataset, config, says: &str| {
        let text = Loader::new(Arc::new(data.clone()), config).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    };
    refused(&data, LoaderConfig { batch: 5, ..good }, "batch: 5 exceeds the 4 images");
    refused(&data, LoaderConfig { batch: 0, ..good }, "batch: must be at least 1");
    refused(&data, LoaderConfig { prefetch: 0, ..good }, "prefetch: must be at least 1");
    for flip in [-0.1, 1.1, f64::NAN] {
        refused(&data, LoaderConfig { flip, ..good }, "not a probability");
    }
    refused(
        &Dataset { labels: None, ..Dataset::clone(&data) },
        LoaderConfig { order: Order::ClassBalanced, ..good },
        "labels",
    );
    refused(&Dataset { n: 5, ..Dataset::clone(&data) }, good, "data: 5 images of 6 bytes, but 24 bytes");
    refused(&Dataset { labels: Some(vec![0]), ..Dataset::clone(&data) }, good, "4 images, but 1 labels");
    refused(&Dataset { width: 0, ..Dataset::clone(&data) }, good, "images of 0 bytes");
}

#[test]
fn a_slow_reader_never_waits_and_waiting_is_measured() {
    let data = Arc::new(numbered(&[0; 64], 3));
    let mut loader = Loader::new(data, LoaderConfig { batch: 8, ..LoaderConfig::default() }).unwrap();
    let mut waits = Vec::new();
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        let batch = loader.next().unwrap();
        assert!(batch.wait <= start.elapsed());
        waits.push(batch.wait);
        loader.recycle(batch);
    }
    // A machine under load may hold up one or another, not most.
    waits.sort_unstable();
    assert!(waits[15] < Duration::from_millis(1), "{waits:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shuffle_is_a_permutation(n in 1u64..20_000, epoch: u64, seed: u64) {
        prop_assert!(is_permutation(n, epoch, seed));
    }

    #[test]
    fn huge_shuffles_stay_in_range_and_do_not_collide(n in (1u64 << 40)..=u64::MAX, seed: u64, start: u64) {
        let mut seen: Vec<u64> = (0..200).map(|i| permute(start.wrapping_add(i) % n, 0, seed, n)).collect();
        let distinct_inputs = (0..200).map(|i| start.wrapping_add(i) % n).collect::<std::collections::BTreeSet<_>>().len();
        prop_assert!(seen.iter().all(|v| *v < n));
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), distinct_inputs);
    }

    #[test]
    fn every_plain_epoch_is_a_permutation(n in 1usize..200, seed: u64, epoch in 0u64..1 << 40) {
        let sequence = Sequence::new(Order::Plain, &numbered(&vec![0; n], 1), seed).unwrap();
        let first = epoch * n as u64;
        let mut seen: Vec<usize> = (first..first + n as u64).map(|s| sequence.index(s)).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
    }

    #[test]
    fn balance_holds(counts in proptest::collection::vec(0usize..12, 1..8), seed: u64, start in 0u64..1 << 40) {
        let labels = mixed(&counts);
        prop_assume!(!labels.is_empty());
        let sequence = Sequence::new(Order::ClassBalanced, &numbered(&labels, 1), seed).unwrap();
        let present: Vec<u32> = (0..).zip(&counts).filter(|(_, n)| **n > 0).map(|(class, _)| class).collect();
        let count = present.len() as u64;
        // Every round holds each class once.
        for round in start..start + 20 {
            let mut classes: Vec<u32> = (0..count).map(|p| labels[sequence.index(round * count + p)]).collect();
            classes.sort_unstable();
            prop_assert_eq!(&classes, &present);
        }
        // As many rounds as a class has images show each of them once, from the start of a pass on.
        for class in present {
            let images: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == class).collect();
            let first = start / images.len() as u64 * images.len() as u64;
            let samples = first * count..(first + images.len() as u64) * count;
            let mut seen: Vec<usize> = samples.map(|s| sequence.index(s)).filter(|i| labels[*i] == class).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, images);
        }
    }

    #[test]
    fn other_seeds_give_other_orders(seed: u64, other: u64, balanced: bool) {
        prop_assume!(seed != other);
        let order = if balanced { Order::ClassBalanced } else { Order::Plain };
        let data = numbered(&mixed(&[40, 30, 50]), 1);
        let run = |seed| {
            let sequence = Sequence::new(order, &data, seed).unwrap();
            (0..60).map(|s| sequence.index(s)).collect::<Vec<_>>()
        };
        let (a, b) = (run(seed), run(other));
        prop_assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < 15);
        prop_assert_eq!(a, run(seed));
    }

    #[test]
    fn a_resumed_loader_sees_what_an_unbroken_one_sees(
        seed: u64, balanced: bool, batch in 1usize..9, resumed in 1usize..9, at in 0u64..100, prefetch in 1usize..5,
    ) {
        let data = Arc::new(numbered(&mixed(&[4, 1, 6]), 3));
        let order = if balanced { Order::ClassBalanced } else { Order::Plain };
        let whole = LoaderConfig { batch, order, seed, flip: 0.5, ..LoaderConfig::default() };
        let part = LoaderConfig { batch: resumed, first_sample: at, prefetch, ..whole };
        let (whole, part) = (loaded(&data, whole, 160), loaded(&data, part, 50));
        prop_assert_eq!(part[0].samples.start, at);
        let (all, some) = (pixels(&whole), pixels(&part));
        prop_assert_eq!(&all[at as usize * 18..][..some.len()], &some[..]);
        let (all, some) = (classes(&whole), classes(&part));
        prop_assert_eq!(&all[at as usize..][..some.len()], &some[..]);
    }
}
