//! What a dataset costs in memory, counted by the allocator of this program.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use langevin::data::{Dataset, DatasetOptions, Loader, LoaderConfig, Order};
use support::*;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator; the rest only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        let live = LIVE.fetch_add(layout.size(), SeqCst) + layout.size();
        PEAK.fetch_max(live, SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        let live = LIVE.fetch_add(size, SeqCst) + size - layout.size();
        LIVE.fetch_sub(layout.size(), SeqCst);
        PEAK.fetch_max(live, SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counts are of the whole program: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SIDE: u32 = 64;
const IMAGE: usize = (SIDE * SIDE * 3) as usize;

/// PNGs of noise in a zip, every fifth of them grey and every tenth cut off if `broken`.
fn noise(n: u32, broken: bool) -> Vec<u8> {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut image = |i: u32| {
        let pixels: Vec<u8> = (0..IMAGE).map(|_| random()).collect();
        let mut file = match i % 5 {
            0 if broken => png(SIDE, SIDE, png::ColorType::Grayscale, &pixels[..IMAGE / 3]),
            _ => png(SIDE, SIDE, png::ColorType::Rgb, &pixels),
        };
        if broken && i % 10 == 1 {
            file.truncate(5000);
        }
        ZipFile::new(&format!("{i}.png"), file)
    };
    zip(&(0..n).map(&mut image).collect::<Vec<_>>())
}

/// The dataset, the memory it takes, and the most that was taken while it was decoded.
fn measured(zip: &[u8], options: &DatasetOptions) -> (Dataset, usize, usize) {
    // Threads and their decoders' tables are there before.
    rayon::broadcast(|_| ());
    let before = LIVE.load(SeqCst);
    PEAK.store(before, SeqCst);
    let data = Dataset::from_zip(Path::new("d.zip"), zip, options).unwrap();
    (data, LIVE.load(SeqCst) - before, PEAK.load(SeqCst) - before)
}

#[test]
fn a_dataset_takes_the_size_of_its_pixels() {
    let _alone = ALONE.lock();
    for (broken, resize) in [(false, None), (true, None), (true, Some(48))] {
        let zip = noise(300, broken);
        let options = DatasetOptions { strict: false, resize, ..DatasetOptions::default() };
        let (data, live, peak) = measured(&zip, &options);
        assert_eq!(data.n, if broken { 270 } else { 300 });
        let pixels = data.images.len() as f64;
        assert!(live as f64 <= 1.05 * pixels, "{live} bytes for {pixels}");
        // Room for all images of the zip, its directory, and what each thread decodes.
        let room = (300 * data.image_len() + 300 * 2048 + rayon::current_num_threads() * (1 << 20)) as f64;
        assert!(peak as f64 <= room, "at most {peak} bytes for {pixels}");
    }
}

/// Names the zip to the process that opens it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ZIP: &str = "LANGEVIN_TEST_ZIP";

/// As the system counts it: what allocators keep of freed memory is in it. In a process of its own, whose allocator has nothing
/// to spare from before.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn an_opened_dataset_takes_the_size_of_its_pixels_from_the_system() {
    let resident = || -> f64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let field = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
        1024.0 * field.trim().split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    if let Some(zip) = std::env::var_os(ZIP) {
        rayon::broadcast(|_| ());
        let before = resident();
        let data = Dataset::open(zip, &DatasetOptions::default()).unwrap();
        let (grown, pixels) = (resident() - before, data.images.len() as f64);
        assert!((0.9..=1.05).contains(&(grown / pixels)), "{grown} bytes for {pixels}");
        return;
    }
    let _alone = ALONE.lock();
    let n = 12_000;
    let image = png(32, 32, png::ColorType::Rgb, &[100; 3072]);
    let mut files: Vec<ZipFile> = (0..n).map(|i| ZipFile::new(&format!("00/{i:08}.png"), &image[..])).collect();
    let labels: Vec<String> = (0..n).map(|i| format!(r#"["00/{i:08}.png",{}]"#, i % 10)).collect();
    files.push(ZipFile::new("dataset.json", format!(r#"{{"labels":[{}]}}"#, labels.join(","))));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), zip(&files)).unwrap();
    let this = "an_opened_dataset_takes_the_size_of_its_pixels_from_the_system";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let out = child.args(["--exact", this, "--nocapture"]).env(ZIP, file.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn batches_are_made_without_allocating() {
    let _alone = ALONE.lock();
    let (mut data, ..) = measured(&noise(50, false), &DatasetOptions::default());
    data.labels = Some((0..50).map(|i| i % 3).collect());
    let order = Order::ClassBalanced;
    let config = LoaderConfig { batch: 8, order, flip: 0.5, prefetch: 3, ..LoaderConfig::default() };
    let mut loader = Loader::new(Arc::new(data), config).unwrap();
    let mut step = || {
        let batch = loader.next().unwrap();
        loader.recycle(batch);
    };
    // At first every batch on its way takes its memory.
    (0..10).for_each(|_| step());
    let (calls, live) = (CALLS.load(SeqCst), LIVE.load(SeqCst));
    (0..500).for_each(|_| step());
    // A channel takes a few bytes when a thread first waits for it.
    let (calls, bytes) = (CALLS.load(SeqCst) - calls, LIVE.load(SeqCst).saturating_sub(live));
    assert!(calls < 10 && bytes < 1000, "500 batches took memory {calls} times, {bytes} bytes");
}
