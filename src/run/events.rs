//! Event files for TensorBoard: protobuf messages (`tensorboard/compat/proto/{event,summary}.proto`) in TFRecord frames.

use super::log::{BIN_EDGES, Entry};
use crate::image::Image;
use crate::{Error, Result};
use prost::Message;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

/// `status` 1 says that a process began at this step: TensorBoard drops what an earlier one had written of later steps.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Picture>,
}

#[derive(Clone, PartialEq, Message)]
struct Picture {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 1 grey, 3 RGB
    #[prost(int32, tag = "3")]
    colorspace: i32,
    /// A PNG.
    #[prost(bytes = "vec", tag = "4")]
    encoded: Vec<u8>,
}

/// An event file that grows.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file for a process that begins after `step`. TensorBoard reads all files of a folder in the order of their names.
    pub fn create(folder: &Path, step: usize) -> Result<Events> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{}.{:09}.langevin", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
        let mut events = Events { path, file };
        events.push(Event { file_version: Some("brain.Event:2".into()), ..event(0) })?;
        events.push(Event { session_log: Some(SessionLog { status: 1 }), ..event(step + 1) })?;
        Ok(events)
    }

    /// The numbers of a line of the log.
    pub fn write(&mut self, entry: &Entry) -> Result<()> {
        let scalar = |tag: &str, v: f64| Value { tag: tag.into(), simple_value: Some(v as f32), image: None };
        let mut value = vec![
            scalar("train/loss", entry.loss),
            scalar("train/grad_norm", entry.grad_norm),
            scalar("train/lr", entry.lr),
            scalar("speed/images_per_second", entry.images_per_second),
            scalar("speed/data_wait", entry.data_wait),
            scalar("speed/sum_wait", entry.sum_wait),
            scalar("speed/memory_mib", entry.memory_mib),
        ];
        for (i, loss) in entry.loss_bins.iter().enumerate() {
            let low = i.checked_sub(1).map_or("-inf".to_string(), |i| BIN_EDGES[i].to_string());
            value.extend(loss.map(|loss| scalar(&format!("loss_by_log_snr/from {low}"), loss)));
        }
        self.push(Event { summary: Some(Summary { value }), ..event(entry.step) })
    }

    /// A grid of samples.
    pub fn image(&mut self, step: usize, image: &Image) -> Result<()> {
        let picture = Picture {
            height: image.height() as i32,
            width: image.width() as i32,
            colorspace: image.channels() as i32,
            encoded: image.encode_png()?,
        };
        let value = vec![Value { tag: "samples".into(), simple_value: None, image: Some(picture) }];
        self.push(Event { summary: Some(Summary { value }), ..event(step) })
    }

    /// One record in one write, so that a kill cuts off the last at most.
    fn push(&mut self, event: Event) -> Result<()> {
        self.file.write_all(&frame(&event.encode_to_vec())).map_err(|e| Error::io(&self.path, e))
    }
}

fn event(step: usize) -> Event {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Event { wall_time: now.as_secs_f64(), step: step as i64, ..Event::default() }
}

/// Length, its checksum, data, their checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// TFRecord's checksum: CRC-32C, turned and shifted so that data which hold checksums do not check themselves.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame that TensorFlow wrote for the 24 bytes of its first event.
    #[test]
    fn frames_have_tensorflows_checksums() {
        // CRC-32C of "123456789" is e3069283 (RFC 3720's polynomial).
        let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(b"123456789"), masked.to_le_bytes());
        let framed = frame(b"123456789");
        assert_eq!((framed.len(), &framed[..8], &framed[12..21]), (25, &9u64.to_le_bytes()[..], &b"123456789"[..]));
    }
}
