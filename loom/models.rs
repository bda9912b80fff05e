//! Every interleaving of the lock-free parts, up to a number of preemptions: `make loom`. Under Miri, or without loom, each model
//! runs some times on real threads instead.
//!
//! In: the files of the main package, as they are. Out: a line per model, or the panic of the interleaving that breaks it. Never:
//! a copy of what it proves.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

#[cfg(loom)]
use loom::thread;
#[cfg(not(loom))]
use std::thread;

#[path = "../src/signals/exponential/counts.rs"]
mod histogram;
#[expect(dead_code, reason = "no model asks for the busy time")]
#[path = "../src/agent/http_layer/counts.rs"]
mod requests;
#[path = "../src/pprof/ring.rs"]
mod ring;
#[path = "../src/signals/sharded/seats.rs"]
mod seats;

/// Where the histogram looks for its neighbour.
mod signals {
    pub mod sharded {
        pub use crate::seats::Writers;
    }
}

/// The words that the ring takes from its neighbour.
mod labels {
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Name(u32);

    impl Name {
        pub const fn index(self) -> u32 {
            self.0
        }

        pub const fn from_index(index: u32) -> Self {
            Self(index)
        }
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Labels {
        pub endpoint: Name,
        pub task: Name,
        pub trace: u128,
    }
}

use labels::{Labels, Name};
use ring::{Head, Poll, Ring};
use seats::{Seats, Writers};

fn main() {
    check("a stack is taken once and whole, or counted as dropped", || ring(1, [1, 1]));
    check("a slot that is taken is free for the next stack", || ring(1, [2, 1]));
    check("two slots keep two stacks", || ring(2, [1, 1]));
    check("what is written on leased and shared seats adds up", seats_change_hands);
    check("a histogram's counts never fall and add up", histogram_counts);
    check("a request that ended was started, on whatever threads", requests_under_way);
}

/// Runs a model over all interleavings of up to three preemptions, and says how many those were.
fn check(fact: &str, model: impl Fn() + Send + Sync + 'static) {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    RUNS.store(0, relaxed);
    let counted = move || {
        RUNS.fetch_add(1, relaxed);
        model();
    };
    #[cfg(loom)]
    {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(counted);
    }
    #[cfg(not(loom))]
    for _ in 0..32 {
        counted();
    }
    println!("{fact}: {} runs", RUNS.load(relaxed));
}

/// A head in which every part tells the stack.
fn head(stack: u32) -> Head {
    let name = Name::from_index(stack);
    let trace = u128::from(stack) << 64 | u128::from(stack);
    Head {
        thread: i32::try_from(stack).expect("models have few stacks"),
        weight: 1,
        labels: Labels { endpoint: name, task: name, trace },
        poll: Some(Poll { worker: stack, task: u64::from(stack), part: stack }),
    }
}

/// Two threads put so many stacks each, a third takes meanwhile.
fn ring(slots: usize, stacks: [u32; 2]) {
    let ring = Arc::new(Ring::new(slots));
    let mut putters = Vec::new();
    for (thread, stacks) in (0_u32..).zip(stacks) {
        let ring = Arc::clone(&ring);
        putters.push(thread::spawn(move || {
            for stack in 0..stacks {
                let stack = 1 + thread * 10 + stack;
                ring.put(&head(stack), |store| {
                    store(stack as usize);
                });
            }
        }));
    }
    let mut seen = Vec::new();
    let mut take = || {
        ring.take(|found, frames| {
            let stack = found.labels.endpoint.index();
            assert_eq!((found, frames), (head(stack), &[stack as usize][..]), "torn");
            assert!(!seen.contains(&stack), "taken twice: {stack}");
            seen.push(stack);
        });
    };
    take();
    for putter in putters {
        putter.join().expect("putting does not panic");
    }
    take();
    take();
    let kept = seen.len() as u64;
    assert_eq!(kept + ring.take_dropped(), u64::from(stacks[0] + stacks[1]), "lost");
    assert!(kept >= 1 && (slots == 1 || kept == 2), "{kept} kept in {slots} slots");
}

/// Three threads want the one seat there is; two give it back, so that it changes hands.
fn seats_change_hands() {
    let shared = Arc::new((Seats::new(1), [histogram::Counts::<1>::default(), Default::default()]));
    let write = |of: &(Seats, [histogram::Counts<1>; 2])| {
        let seat = of.0.lease().unwrap_or_else(|| of.0.shared());
        let copy = &of.1[usize::from(seat >= seats::MAX_CORES)];
        copy.record(Writers::of(seat), 0, 3);
        copy.record(Writers::of(seat), 0, 4);
        seat
    };
    let writers = [(); 2].map(|()| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || shared.0.give_back(write(&shared)))
    });
    write(&shared);
    for writer in writers {
        writer.join().expect("writing does not panic");
    }
    let (mut sum, mut buckets) = (0, [0]);
    shared.1.iter().for_each(|copy| copy.add_to(&mut sum, &mut buckets));
    assert_eq!((sum, buckets), (21, [6]));
}

/// Two threads record, a third looks twice meanwhile.
fn histogram_counts() {
    let counts = Arc::new(histogram::Counts::<2>::default());
    let look = |counts: &histogram::Counts<2>| {
        let (mut sum, mut buckets) = (0, [0; 2]);
        counts.add_to(&mut sum, &mut buckets);
        (sum, buckets)
    };
    let recorder = |bucket: usize, nanoseconds: u64| {
        let counts = Arc::clone(&counts);
        thread::spawn(move || {
            counts.record(Writers::Several, bucket, nanoseconds);
            counts.record(Writers::Several, 1, nanoseconds);
        })
    };
    let recorders = [recorder(0, 3), recorder(1, 5)];
    let mut before = (0, [0; 2]);
    for _ in 0..2 {
        let now = look(&counts);
        assert!(now.0 >= before.0 && now.1[0] >= before.1[0] && now.1[1] >= before.1[1], "fell");
        assert!(now.0 <= 16 && now.1[0] <= 1 && now.1[1] <= 3, "more than was recorded");
        before = now;
    }
    for recorder in recorders {
        recorder.join().expect("recording does not panic");
    }
    assert_eq!(look(&counts), (16, [1, 3]));
}

/// A request starts on one thread and ends on another, of another shard, while a third counts those under way.
fn requests_under_way() {
    let shards = Arc::new([requests::Counts::default(), requests::Counts::default()]);
    let of = Arc::clone(&shards);
    let first = thread::spawn(move || {
        of[0].start();
        let of = Arc::clone(&of);
        thread::spawn(move || of[1].finish()).join().expect("counting does not panic");
    });
    let (started, finished) = requests::Counts::started_and_finished(|| shards.iter());
    assert!(finished <= started && started <= 1, "{finished} of {started} ended");
    first.join().expect("counting does not panic");
    assert_eq!(requests::Counts::started_and_finished(|| shards.iter()), (1, 1));
}
