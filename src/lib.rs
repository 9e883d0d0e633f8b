//! langevin: a diffusion engine whose kernels are its own.
//!
//! It runs and trains UNet and DiT diffusion models. Everything it does goes through five steps:
//!
//! 1. A [`graph`] is a static list of ops over typed values. [`nn`] builds one from a model's `config.json`.
//! 2. [`passes`] rewrite it: reverse mode appends gradients, fusion merges neighbouring ops.
//! 3. A [`Program`](schedule::Program) is a graph lowered for one device: launches with their places in memory.
//! 4. A [`Schedule`](schedule::Schedule) is a list of steps over programs that share one arena, and a table of scalars by row.
//!    A sampler or a training step is a function that returns one, see [`methods`].
//! 5. A [`Session`](schedule::Session) holds the arena and runs the schedule on a [`Device`].
//!
//! To sample images from a model, start at [`sampler`]; to train one, at [`trainer`]; to judge samples, at
//! [`evaluator`]; to write an op, at [`graph::Op`].
//! `docs/architecture.md` in the repository describes the parts and why they are so.
//!
//! The five steps by hand, for y = silu(x · W) and its gradient:
//!
//! ```
//! use langevin::Device;
//! use langevin::graph::Graph;
//! use langevin::ops::{Activate, Activation, Linear};
//! use langevin::passes::autodiff::{Recompute, gradients};
//! use langevin::passes::fuse::{Purpose, fuse};
//! use langevin::schedule::{Options, Report, Schedule, Session};
//! use langevin::tensor::{TensorType, to_layout};
//!
//! let mut graph = Graph::new();
//! let x = graph.input("x", TensorType::f32([1, 2]));
//! let w = graph.parameter("w", TensorType::panels([2, 3]));
//! let dy = graph.input("dy", TensorType::f32([1, 3]));
//! let product = graph.apply(Linear::default(), &[x, w])?;
//! let y = graph.apply(Activate(Activation::Silu), &[product])?;
//! let grads = gradients(&mut graph, &[(y, dy)], &[x], Recompute::Off)?;
//! graph.output("y", y);
//! graph.output("dx", grads[0].expect("y depends on x"));
//!
//! // A forward pass alone would fuse to one launch; here the backward needs the product as well.
//! let (graph, _merges) = fuse(&graph, Purpose::Inference)?;
//! let device = Device::auto();
//! let schedule = Schedule::once("example", &graph, device.target(), Options::default())?;
//! println!("{}", Report::new(&schedule));
//!
//! let [x, w, dy, y, dx] = ["x", "w", "dy", "y", "dx"].map(|name| schedule.buffers.find(name).expect("declared"));
//! let w_type = schedule.buffers.get(w).ty.clone();
//! let mut session = Session::new(device, schedule)?;
//! session.write(x, &[1.0f32, -1.0])?;
//! session.write(dy, &[1.0f32; 3])?;
//! session.fill(w, |stored| to_layout(&w_type, &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0], stored))?;
//! session.run(&mut |_session, _event| Ok(()))?;
//!
//! // x · W = 0, so y = 0; silu'(0) = 1/2, so dx = ½ · (1 + 2 + 3).
//! assert_eq!(session.read::<f32>(y)?, [0.0; 3]);
//! assert_eq!(session.read::<f32>(dx)?, [3.0; 2]);
//! # Ok::<(), langevin::Error>(())
//! ```

pub mod bench;
pub mod classifier;
pub mod cli;
pub mod collective;
pub mod cpu;
pub mod data;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod eval;
pub mod evaluator;
pub mod features;
pub mod files;
pub mod graph;
pub mod image;
pub mod lab;
pub mod methods;
pub mod model;
pub mod nn;
pub mod ops;
pub mod passes;
pub mod ptx;
pub mod reproduce;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod tensor;
pub mod trainer;
pub mod weights;

pub use device::Device;
pub use error::{Error, Result};
pub use model::Model;

/// The Rust in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
