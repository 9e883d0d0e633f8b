//! Any bytes as a WebDataset tar: no panic, no more memory than allowed, and labels for all images or for none; resized
//! or not, as they are or in grey, with broken images refused or left out.
#![no_main]

use std::path::Path;

use langevin::data::{Dataset, DatasetOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for (strict, resize, channels) in [(true, None, None), (false, None, None), (false, Some(3), Some(1))] {
        let options = DatasetOptions { max_bytes: 1 << 20, strict, resize, channels, ..Default::default() };
        let Ok(dataset) = Dataset::from_tar(Path::new("fuzz"), bytes, &options) else { continue };
        assert!(dataset.images.len() <= options.max_bytes);
        assert_eq!(dataset.images.len(), dataset.n * dataset.image_len());
        assert!(dataset.labels.is_none_or(|labels| labels.len() == dataset.n));
        assert!(!strict || dataset.skipped.count == 0);
    }
});
