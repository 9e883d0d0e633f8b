//! Datasets: every kind is read correctly, parts can be chosen, and shuffles are permutations.

mod support;

use std::fs;
use std::path::Path;

use langevin::data::{Dataset, DatasetOptions, permute, to_f32};
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
        from_zip(&six(), &DatasetOptions { limit, classes: classes.map(Vec::from), ..all() })
    };
    let d = load(Some(2), None).unwrap();
    assert_eq!((reds(&d), d.labels.clone().unwrap(), d.class_count), (vec![0, 10], vec![2, 0], 3));
    let d = load(None, Some(&[0, 1])).unwrap();
    assert_eq!((reds(&d), d.labels.clone().unwrap(), d.class_count), (vec![10, 20, 40, 50], vec![0, 1, 0, 1], 3));
    let d = load(Some(1), Some(&[1])).unwrap();
    assert_eq!((reds(&d), d.labels.clone().unwrap()), (vec![20], vec![1]));
    assert_eq!(load(Some(100), None).unwrap().n, 6);
    assert!(load(Some(0), None).unwrap_err().to_string().starts_with("limit:"));
    assert!(load(None, Some(&[7])).unwrap_err().to_string().contains("classes Some([7]) leave no image of 6"));
    let unlabelled = from_zip(&six()[1..], &DatasetOptions { classes: Some(vec![0]), ..all() });
    assert!(unlabelled.unwrap_err().to_string().contains("no labels"));
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
        let part = Dataset::open(&path, &DatasetOptions { classes: Some(vec![0, 2]), ..all() }).unwrap();
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
    assert!(Dataset::open(empty.path(), &all()).unwrap_err().to_string().contains("no PNG or JPEG"));
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
}
