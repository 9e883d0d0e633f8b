//! Processes that `mpirun` started.

use super::{Collective, Piece};
use crate::{Error, Result};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::request::{Request, StaticScope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// All calls of MPI are made by one thread, which has begun sums in flight and tests them now and then.
///
/// MPI libraries move data only inside their calls, so something has to call while the backward pass computes. A blocking call
/// would do that too, but it spins: one core less for kernels, for most of the backward pass. Tests with pauses between them cost
/// next to nothing; only once somebody waits are they made without.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    size: usize,
    /// `None` only while dropping.
    jobs: Option<Sender<Job>>,
    /// A wait is over, a broadcast is there: its bytes.
    done: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    Sum(Piece),
    Wait,
    Broadcast(usize, Vec<u8>),
    Abort,
}

/// Between tests while kernels run. A bucket takes some milliseconds.
const PAUSE: Duration = Duration::from_micros(100);

/// How long a wait goes on without pauses: longer than sums take, shorter than another process needs to draw a grid.
const SPIN: Duration = Duration::from_millis(20);

impl Mpi {
    /// Initialises MPI. Once a process: MPI cannot be initialised again, not even after this was dropped.
    pub fn new() -> Result<Mpi> {
        let (job, jobs) = channel();
        let (tell, done) = channel();
        let (started, start) = channel();
        let work = move || {
            let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Funneled) else { return };
            if threading < Threading::Funneled {
                return;
            }
            let world = universe.world();
            let _ = started.send((world.rank() as usize, world.size() as usize));
            Worker { _universe: universe, world, sums: vec![], spare: vec![] }.work(&jobs, &tell);
        };
        let failed = |reason: String| Error::Thread { what: "MPI", reason };
        let thread = Builder::new().name("langevin-mpi".into()).spawn(work).map_err(|e| failed(e.to_string()))?;
        let (rank, size) = start.recv().map_err(|_| {
            failed("MPI was initialised before, or does not allow calls from a thread of a program with several".into())
        })?;
        Ok(Mpi { rank, size, jobs: Some(job), done, thread: Some(thread) })
    }

    fn send(&self, job: Job) -> Result<()> {
        let sent = self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok());
        sent.ok_or_else(ended)
    }
}

fn ended() -> Error {
    Error::Thread { what: "MPI", reason: "it takes no more work".into() }
}

// SAFETY: the worker touches a piece between its job and the end of the wait that follows.
unsafe impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    /// 2 MiB, which take 2 ms at 10 Gbit/s: long against what beginning a sum costs.
    fn bucket(&self) -> usize {
        1 << 19
    }

    fn start_sum(&mut self, piece: Piece) -> Result<()> {
        self.send(Job::Sum(piece))
    }

    fn wait(&mut self) -> Result<()> {
        self.send(Job::Wait)?;
        self.done.recv().map(|_| ()).map_err(|_| ended())
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.send(Job::Broadcast(root, std::mem::take(bytes)))?;
        *bytes = self.done.recv().map_err(|_| ended())?;
        Ok(())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others would wait for this process for ever.
            eprintln!("langevin: process {} panicked; ending all {}", self.rank, self.size);
            let _ = self.send(Job::Abort);
        }
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A sum in flight: rsmpi does not sum in place.
struct Sum {
    request: Request<'static, [f32], StaticScope>,
    to: Piece,
    from: Vec<f32>,
}

struct Worker {
    world: SimpleCommunicator,
    sums: Vec<Sum>,
    /// Memory of sums that have ended.
    spare: Vec<Vec<f32>>,
    /// Dropped last: that finalises MPI.
    _universe: Universe,
}

impl Worker {
    /// Until nobody is left to give work.
    fn work(mut self, jobs: &Receiver<Job>, tell: &Sender<Vec<u8>>) {
        loop {
            let job = match self.sums.is_empty() {
                true => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => jobs.recv_timeout(PAUSE),
            };
            match job {
                Ok(Job::Sum(piece)) => self.start(piece),
                Ok(Job::Wait) => {
                    self.finish();
                    // Nobody listens only where the caller is gone.
                    let _ = tell.send(vec![]);
                }
                Ok(Job::Broadcast(root, bytes)) => {
                    let _ = tell.send(self.broadcast(root, bytes));
                }
                Ok(Job::Abort) => self.world.abort(1),
                Err(RecvTimeoutError::Timeout) => self.test(),
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
        }
    }

    fn start(&mut self, piece: Piece) {
        // SAFETY: the piece is on its way until it leaves `sums`.
        let from: &'static [f32] = unsafe { piece.numbers() };
        let mut memory = self.spare.pop().unwrap_or_default();
        memory.resize(from.len(), 0.0);
        // SAFETY: the vector stays beside the request, which ends first, and is not touched until then.
        let into: &'static mut [f32] = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), memory.len()) };
        let request = self.world.immediate_all_reduce_into(StaticScope, from, into, SystemOperation::sum());
        self.sums.push(Sum { request, to: piece, from: memory });
    }

    /// Moves data on, and hands out the sums that are there.
    fn test(&mut self) {
        for sum in std::mem::take(&mut self.sums) {
            match sum.request.test() {
                Ok(_) => {
                    // SAFETY: on its way still, and MPI has let go of it.
                    unsafe { sum.to.numbers() }.copy_from_slice(&sum.from);
                    self.spare.push(sum.from);
                }
                Err(request) => self.sums.push(Sum { request, ..sum }),
            }
        }
    }

    fn finish(&mut self) {
        let patience = Patience::new();
        while !self.sums.is_empty() {
            self.test();
            patience.pause();
        }
    }

    fn broadcast(&self, root: usize, mut bytes: Vec<u8>) -> Vec<u8> {
        let root = self.world.process_at_rank(root as i32);
        let mut length = bytes.len() as u64;
        mpi::request::scope(|scope| wait(root.immediate_broadcast_into(scope, &mut length)));
        bytes.resize(length as usize, 0);
        mpi::request::scope(|scope| wait(root.immediate_broadcast_into(scope, &mut bytes[..])));
        bytes
    }
}

fn wait<'a, D: ?Sized, S: mpi::request::Scope<'a>>(mut request: Request<'a, D, S>) {
    let patience = Patience::new();
    while let Err(unfinished) = request.test() {
        request = unfinished;
        patience.pause();
    }
}

/// Between tests of somebody who waits: yields at first, then pauses.
struct Patience(Instant);

impl Patience {
    fn new() -> Patience {
        Patience(Instant::now())
    }

    fn pause(&self) {
        if self.0.elapsed() < SPIN { std::thread::yield_now() } else { std::thread::sleep(PAUSE) }
    }
}
