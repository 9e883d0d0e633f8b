//! Any bytes as a safetensors file: no panic, and whatever is accepted lies inside the file.
#![no_main]

use std::path::Path;

use langevin::weights::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(Path::new("fuzz"), bytes) else { return };
    for (info, range) in header.tensors.values() {
        assert_eq!(bytes[range.clone()].len(), info.element_count() * info.dtype.bitsize() / 8);
    }
});
