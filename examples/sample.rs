//! Sampling from a program: open a model, watch the steps, stop when asked to, save a picture.
//!
//!     cargo run --release --example sample [MODEL] [OUT.png]

use langevin::sampler::SampleRequest;
use langevin::{Device, Error, Model, Result};
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = Model::open(args.next().unwrap_or_else(|| "mnist-dit".into()))?;
    let out = args.next().unwrap_or_else(|| "example.png".into());

    let request = SampleRequest { n: 20, seed: 7, ..SampleRequest::new(&model) };
    let mut sampler = request.prepare(&model, Device::auto())?;

    // Called before every step. An error from it stops the run; it comes back from `run`.
    let start = Instant::now();
    let images = sampler.run(&mut |progress| {
        eprintln!("step {} of {}", progress.step, progress.steps);
        if start.elapsed() > Duration::from_secs(60) { Err(Error::Cancelled) } else { Ok(()) }
    });
    match images {
        Ok(images) => {
            images.grid(5)?.upscale(3)?.save_png(&out)?;
            println!("{out}");
            Ok(())
        }
        Err(Error::Cancelled) => {
            eprintln!("stopped after a minute");
            Ok(())
        }
        Err(other) => Err(other),
    }
}
