//! Any bytes as a zip of images: no panic, and no more memory than allowed.
#![no_main]

use std::path::Path;

use langevin::data::{Dataset, DatasetOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let options = DatasetOptions { max_bytes: 1 << 20, ..Default::default() };
    let Ok(dataset) = Dataset::from_zip(Path::new("fuzz"), bytes, &options) else { return };
    assert!(dataset.images.len() <= options.max_bytes);
    assert_eq!(dataset.images.len(), dataset.n * dataset.image_len());
});
