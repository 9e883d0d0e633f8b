//! Batches made ahead on a thread, so that a training step finds its images ready.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::{Dataset, Order, Sequence, to_f32};
use crate::cpu::philox;
use crate::{Error, Result};

/// The Philox stream of flips, far from those of dropout layers and of the training step.
const FLIPS: u32 = 1 << 20;

/// What a [`Loader`] makes of a dataset.
#[derive(Clone, Copy, Debug)]
pub struct LoaderConfig {
    /// Images of a batch, 1 to as many as there are.
    pub batch: usize,
    /// In which order images come.
    pub order: Order,
    /// Of the order and of flips.
    pub seed: u64,
    /// Probability, 0 to 1, that an image is mirrored left to right.
    pub flip: f64,
    /// Number of the first sample: 0, or where an earlier run ended.
    pub first_sample: u64,
    /// Samples between a batch and the next that are left to other processes.
    pub skip: u64,
    /// Batches that are made ahead, at least 1. Each takes the memory of its images in f32.
    pub prefetch: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig { batch: 1, order: Order::Plain, seed: 0, flip: 0.0, first_sample: 0, skip: 0, prefetch: 2 }
    }
}

/// Images for one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The numbers of the samples, counted from the start of the run.
    pub samples: Range<u64>,
    /// The pixels in [-1, 1], NHWC.
    pub images: Vec<f32>,
    /// The class of each image, if the dataset has classes.
    pub labels: Option<Vec<u32>>,
    /// How long [`Loader::next`] had to wait for this batch: 0 if it was ready.
    pub wait: Duration,
}

/// Makes batches on a thread of its own, which ends when this is dropped.
///
/// What a sample is depends on the dataset, `order`, `seed`, `flip` and its number alone: a run that continues at sample k
/// sees what it would have seen without the break, whatever the sizes of batches.
#[derive(Debug)]
pub struct Loader {
    /// `None` only while dropping.
    ready: Option<Receiver<Result<Batch>>>,
    used: SyncSender<Batch>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts making batches. Errors name the option that does not fit the dataset.
    pub fn new(data: Arc<Dataset>, config: LoaderConfig) -> Result<Self> {
        check(&data, &config)?;
        let sequence = Sequence::new(config.order, &data, config.seed)?;
        Self::spawn(config.prefetch, config.first_sample, config.batch as u64, config.skip, move |batch| {
            fill(&data, &sequence, &config, batch)
        })
    }

    /// Calls `fill` on a thread for batches of consecutive samples, `skip` samples apart.
    fn spawn(
        prefetch: usize,
        first: u64,
        size: u64,
        skip: u64,
        mut fill: impl FnMut(&mut Batch) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        // One more than lie in the channel is in the hands of the thread.
        let (send, ready) = sync_channel(prefetch - 1);
        // With the one that the caller has, as many are on their way. They get their memory when first filled.
        let (used, recycled) = sync_channel(prefetch + 1);
        for _ in 0..=prefetch {
            let _ = used.try_send(Batch::default());
        }
        let work = move || {
            let mut next = first;
            loop {
                let mut batch = recycled.try_recv().unwrap_or_default();
                let made = end_of(next, size).and_then(|end| {
                    batch.samples = next..end;
                    next = end.saturating_add(skip);
                    fill(&mut batch)
                });
                let failed = made.is_err();
                // An error of `send` means that nobody wants batches any more.
                if send.send(made.map(|()| batch)).is_err() || failed {
                    return;
                }
            }
        };
        let thread = Builder::new()
            .name("langevin-data".into())
            .spawn(work)
            .map_err(|e| Error::Thread { what: "the data loader", reason: format!("it could not start: {e}") })?;
        Ok(Loader { ready: Some(ready), used, thread: Some(thread) })
    }

    /// The next batch, waiting until it is ready. After an error there are no more batches.
    #[allow(clippy::should_implement_trait, reason = "batches never run out, and an iterator would hide what can fail")]
    pub fn next(&mut self) -> Result<Batch> {
        let Some(ready) = &self.ready else { return Err(self.end()) };
        if let Ok(batch) = ready.try_recv() {
            return batch.map(|batch| Batch { wait: Duration::ZERO, ..batch });
        }
        let start = Instant::now();
        match ready.recv() {
            Ok(batch) => batch.map(|batch| Batch { wait: start.elapsed(), ..batch }),
            Err(_) => Err(self.end()),
        }
    }

    /// Gives the memory of a batch back for later ones. With this, nothing is allocated per batch.
    pub fn recycle(&mut self, batch: Batch) {
        // One too many is dropped.
        let _ = self.used.try_send(batch);
    }

    /// Why the thread ended.
    fn end(&mut self) -> Error {
        let reason = match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
                (Some(text), _) => (*text).to_owned(),
                (_, Some(text)) => text.clone(),
                _ => "panic".to_owned(),
            },
            _ => "after an earlier error".to_owned(),
        };
        Error::Thread { what: "the data loader", reason }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // The thread sees that nobody receives any more.
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn check(data: &Dataset, config: &LoaderConfig) -> Result<()> {
    if config.batch == 0 {
        return Err(Error::invalid("batch", "must be at least 1"));
    }
    if config.prefetch == 0 {
        return Err(Error::invalid("prefetch", "must be at least 1"));
    }
    if !(0.0..=1.0).contains(&config.flip) {
        return Err(Error::invalid("flip", format!("{} is not a probability, 0 to 1", config.flip)));
    }
    if data.n < config.batch {
        return Err(Error::invalid("batch", format!("{} exceeds the {} images there are", config.batch, data.n)));
    }
    let pixels = data.n.checked_mul(data.image_len());
    if data.image_len() == 0 || pixels != Some(data.images.len()) {
        let reason = format!("{} images of {} bytes, but {} bytes", data.n, data.image_len(), data.images.len());
        return Err(Error::invalid("data", reason));
    }
    match &data.labels {
        Some(labels) if labels.len() != data.n => {
            Err(Error::invalid("data", format!("{} images, but {} labels", data.n, labels.len())))
        }
        _ => Ok(()),
    }
}

fn end_of(first: u64, size: u64) -> Result<u64> {
    first.checked_add(size).ok_or_else(|| Error::invalid("first_sample", "sample numbers end at 2^64"))
}

/// Makes the batch of its samples in the memory it has.
fn fill(data: &Dataset, sequence: &Sequence, config: &LoaderConfig, batch: &mut Batch) -> Result<()> {
    let len = data.image_len();
    batch.images.resize(config.batch * len, 0.0);
    match &data.labels {
        Some(_) => batch.labels.get_or_insert_default().clear(),
        None => batch.labels = None,
    }
    for (sample, out) in batch.samples.clone().zip(batch.images.chunks_exact_mut(len)) {
        let index = sequence.index(sample);
        let image = data.image(index).ok_or_else(|| data.out_of_range(index))?;
        if flips(config, sample) {
            mirrored_f32(image, data.width, data.channels, out);
        } else {
            to_f32(image, out);
        }
        if let (Some(to), Some(from)) = (&mut batch.labels, &data.labels) {
            to.push(from[index]);
        }
    }
    Ok(())
}

fn flips(config: &LoaderConfig, sample: u64) -> bool {
    if config.flip == 0.0 {
        return false;
    }
    let key = [config.seed as u32, (config.seed >> 32) as u32];
    let words = philox::block(key, sample as u32, [(sample >> 32) as u32, FLIPS, 0]);
    f64::from(philox::uniform(words[0][0])) < config.flip
}

/// [`to_f32`] with the pixels of each row in reverse.
fn mirrored_f32(image: &[u8], width: usize, channels: usize, out: &mut [f32]) {
    let row = width * channels;
    for (out, image) in out.chunks_exact_mut(row).zip(image.chunks_exact(row)) {
        for (out, pixel) in out.chunks_exact_mut(channels).zip(image.chunks_exact(channels).rev()) {
            to_f32(pixel, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn errors_and_panics_of_the_thread_reach_the_caller() {
        let mut loader = Loader::spawn(2, 10, 5, 0, |batch| match batch.samples.start {
            20 => Err(Error::invalid("test", "sample 20")),
            _ => Ok(()),
        })
        .unwrap();
        assert_eq!(loader.next().unwrap().samples, 10..15);
        assert_eq!(loader.next().unwrap().samples, 15..20);
        assert_eq!(loader.next().unwrap_err().to_string(), "test: sample 20");
        assert!(loader.next().unwrap_err().to_string().contains("earlier error"));

        let mut loader = Loader::spawn(1, 0, 1, 0, |batch| {
            assert!(batch.samples.start < 2, "sample {}", batch.samples.start);
            Ok(())
        })
        .unwrap();
        assert!(loader.next().is_ok() && loader.next().is_ok());
        assert!(loader.next().unwrap_err().to_string().ends_with("ended: sample 2"));
    }

    #[test]
    fn sample_numbers_end_without_overflow() {
        let mut loader = Loader::spawn(1, u64::MAX - 5, 4, 0, |_| Ok(())).unwrap();
        assert_eq!(loader.next().unwrap().samples.end, u64::MAX - 1);
        assert!(loader.next().unwrap_err().to_string().starts_with("first_sample"));
    }

    /// A step that takes longer than a batch finds the next one ready. Here it lasts until the thread is as far ahead as it may
    /// be, whatever the machine does.
    #[test]
    fn a_step_that_takes_its_time_never_waits() {
        let made = Arc::new(AtomicUsize::new(0));
        for prefetch in [2, 3] {
            made.store(0, SeqCst);
            let counter = made.clone();
            let mut loader = Loader::spawn(prefetch, 0, 1, 0, move |_| {
                counter.fetch_add(1, SeqCst);
                Ok(())
            })
            .unwrap();
            for step in 0..20 {
                let batch = loader.next().unwrap();
                assert!(step == 0 || batch.wait == Duration::ZERO, "step {step}: {:?}", batch.wait);
                loader.recycle(batch);
                while made.load(SeqCst) <= step + prefetch {
                    std::thread::yield_now();
                }
            }
        }
    }

    #[test]
    fn no_more_batches_are_made_ahead_than_asked_for_and_dropping_ends_the_thread() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let loader = Loader::spawn(3, 0, 1, 0, move |_| {
            counter.fetch_add(1, SeqCst);
            Ok(())
        })
        .unwrap();
        while made.load(SeqCst) < 3 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        drop(loader);
        // The thread's closure, and with it its counter, is gone.
        assert_eq!(Arc::strong_count(&made), 1);
        assert_eq!(made.load(SeqCst), 3);
    }
}
