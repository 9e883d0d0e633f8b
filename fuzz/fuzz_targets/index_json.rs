//! Any bytes as an index of shards: no panic, and every shard stays in the folder.
#![no_main]

use std::path::Path;

use langevin::weights::ShardIndex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = ShardIndex::parse(Path::new("fuzz"), bytes) else { return };
    for shard in index.shards() {
        assert_eq!(Path::new("folder").join(shard).parent(), Some(Path::new("folder")));
        assert_ne!(shard, "..");
    }
});
