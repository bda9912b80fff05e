//! Headroom makes a Kubernetes HorizontalPodAutoscaler scale on what a service's runtime knows about itself: live tasks,
//! heap, allocation rate, CPU, latency, or any gauge of its own.
//!
//! # In a service
//!
//! ```no_run
//! headroom::profiled_jemalloc!(); // the allocator, ready for heap profiles
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let agent = headroom::Agent::builder().service("checkout").bind("0.0.0.0:9469".parse()?).start()?;
//! let app: axum::Router = axum::Router::new().layer(agent.http_layer());
//! # Ok(()) }
//! ```
//!
//! The feature `agent` alone pulls in no Kubernetes client and no TLS. [`agent`] and [`signals`] are what a service uses, and
//! [`telemetry`] for its logs; the rest is the program, documented for those who change it.
//!
//! # The parts
//!
//! - The **agent** ([`agent`]) is a library inside a Rust service. It reads the runtime, the allocator, the process and
//!   the cgroup, and serves `/metrics`, probes and `/debug/pprof/*` from a thread of its own. Beside a service in another
//!   language the program runs it as a sidecar (`agent::sidecar`).
//! - The **adapter** ([`adapter`]) is an aggregated API server with a [`controller`] for `ScalingPolicy` objects. It turns
//!   signals and thresholds into the numbers an HPA scales on, and answers from memory.
//!
//! # The flow, in one direction
//!
//! ```text
//! kernel, tokio, allocator, HTTP layer
//!   -> signals    read:    values under the names of one catalogue
//!   -> agent      serve:   /metrics, /debug/pprof/*, probes                      process 1, the workload
//!   ==> network   every pod is scraped each interval
//!   -> sources    collect: a Batch of samples, or why there are none
//!   -> store      keep:    bounded windows per series; knows counter resets and staleness
//!   -> policy     decide:  thresholds over the windows give a Decision (pure, takes `now`)
//!   -> adapter    serve:   external, custom and resource metrics                process 2, in the cluster
//!   ==> kube-apiserver -> HPA -> Deployment
//!
//! controller -> policy     ScalingPolicy objects and their workloads, from the side; status is written back
//! ```
//!
//! [`pipeline`] joins the rooms; read it to know the program. Rooms are joined by channels and by immutable snapshots that
//! are swapped atomically ([`policy::Board`]), so that a reader never waits for a writer. A policy is decided when a batch
//! of one of its pods arrives (coalesced to 20 ms); there is no global tick.
//!
//! # Layers
//!
//! A room imports only rooms of the lines above its own, and never a room of its own line. A test holds this table.
//!
//! | rooms | what they know |
//! |---|---|
//! | [`units`], [`quantity`], [`time`] | numbers with units, Kubernetes quantities, the two clocks |
//! | [`sample`], [`config`], [`probes`], [`telemetry`] | the words of the flow; what any program of ours needs |
//! | [`signals`] | the catalogue, and the collectors of this process |
//! | [`store`], [`pprof`] | windows of samples; profiles |
//! | [`policy`] | the demand, and why |
//! | [`agent`], [`sources`], [`controller`], [`adapter`] | HTTP, Kubernetes |
//! | [`pipeline`] | the order of things |
//! | [`conformance`] | the HPA's side of the wire, for any adapter |
//! | [`cli`] | the arguments |
//! | [`command`] | one composition root per subcommand |
//!
//! The catalogue, the store and the policy know no Kubernetes, no HTTP and no clock.
//!
//! # Invariants
//!
//! 1. Missing or stale is never 0 and never silently the last value. An HPA reads 0 as "scale down" and ignores timestamps,
//!    so an absent value is an API error whose message says what is missing and since when. After a restart: an error until
//!    every signal has two samples.
//! 2. No percentile is ever averaged across pods. Histograms are merged, then asked.
//! 3. Everything is bounded (series, labels, body bytes, queue lengths, profile seconds, requests in flight), and what is
//!    dropped is counted.
//! 4. One malformed pod, policy or series never harms another.
//! 5. Nothing on the read path calls a network, waits for a writer, or allocates in proportion to the fleet. (The
//!    authorization of a caller that is not cached asks the API server, as every aggregated server does.)
//! 6. Metric names come from one catalogue, [`signals::CATALOGUE`].
//! 7. The answer explains itself: [`policy::Decision`] carries which pods were left out and why, the formula with its
//!    numbers, and how old they are.
//!
//! # Why totals
//!
//! The HPA adds up the items of an external metric and, with an `AverageValue` target of 1, asks for `ceil(total)` pods. So
//! `headroom_demand` is a total: the pods' worth of work demanded now. That is right while pods are unready or data lags,
//! where a mean with a `Value` target overshoots (the HPA multiplies it with the pods that are Ready by then) or even scales
//! down under overload. The HPA's status then shows total/replicas, which is the mean pressure that people want to read.
//!
//! # Decisions that a figure made
//!
//! - **glibc, dynamic.** jemalloc's heap profiling crashes in static binaries (SIGSEGV with musl, SIGABRT with static
//!   glibc, jemalloc 5.3), so the image carries the dynamic loader and the libraries of one glibc binary.
//! - **`sysinfo` only for the host.** It is blind to cgroup limits, so processes are found with `procfs` and cgroups with our
//!   own parser; `sysinfo` gives what belongs to the node, its cores and its name.
//! - **Saturation is corrected.** tokio's busy counter stands still while a poll holds a worker: a service with one worker
//!   blocked for 3 s read 60 ns busy after 2 s, and a jump of 3 s afterwards. [`signals`] credits the running poll.
//! - **Allocations are counted in the allocator.** jemalloc 5.3.1 merges its counters of requests only when a thread's cache
//!   fills or is flushed: 400 MB a round in pairs of 4 KiB read as 0 for nearly 20 rounds. [`profiled_jemalloc!`] wraps
//!   jemalloc and counts bytes asked for per thread, for 5 to 12 ns per malloc and free of 64 bytes to 1 KiB.
//! - **The agent's threads have an arena of their own, and those that come and go are not in heap profiles.** 45 s after
//!   profiles were asked for over and over, a service had 52 MB of anonymous memory, freed pages in arenas of threads that had ended
//!   and the tables of every thread that was ever sampled, which jemalloc keeps for ever with `prof_accum`. Now it has 14 MB.
//! - **The CPU sampler is our own**, per-thread CPU timers and a frame-pointer walk; crate `pprof` gives the types of
//!   profile.proto. Its sampler weights threads wrongly (ITIMER_PROF: 0.41 to 1.35 of the expected samples for four equal
//!   threads), and its frame-pointer walk starts at the return address, so that the function that burns is in no stack.
//!   `dial9-perf-self-profile` 0.5.7 needs perf events, which the default seccomp profile of pods refuses (0.903 to 0.976 of
//!   the expected samples), or each thread to register itself (0.996 to 1.000, else 0), and its samples have no place for
//!   the labels of a request. Ours: 0.998 to 0.999 by samples, 1.0000 by value, without registration.
//! - **A thread's samples share out its own CPU clock.** One signal can stand for several expiries of a timer; taken as one
//!   each, threads got 0.76 to 0.97 of their time.
//! - **Durations are counted in copies that have one writer.** Beside a relaxed atomic addition of 1.7 ns, a record took 4.3 ns
//!   with two of them and 2.9 ns with a load and a store each, where a thread writes a copy alone.
//! - **The canary waits for a timer of the kernel**, and of an idle process for a long one. One sleep of tokio's timer wakes an
//!   idle runtime three times; with a timerfd an idle agent went from 0.10 to 0.07 % of a core. Ten wakes a second are still two
//!   thirds of what it uses: while the process uses under 1 % of a core the canary looks once a second, since there is no queue
//!   whose delay could be seen. The timer is the agent's to set, so it looks faster at the first tick that finds work.
//! - **A scrape allocates its body.** Through the registry of crate `prometheus` and `procfs` it took 496 allocations in text
//!   and 2 177 in protobuf, each scrape anew. Series go from the reading to the body without a family in between, kernel files
//!   are read into memory that is kept, and of procfs are left what is read once and what is asked of other processes.
//! - **Profiles name functions, not lines**, unless asked for `?lines=1`: with 18 MB of debug information the line tables
//!   cost 70 MB and 1.3 s in the service, its symbols under 10 MB and 81 ms. `go tool pprof` can add lines itself.
//! - **The work of draining is no steady work.** In the work form, what pods use to work off a backlog is taken out of the
//!   steady part; counted twice, a backlog asked for 29 pods where 20 were right.
//! - **Two layers before a handler.** With five layers of middleware a read took 27 microseconds of the adapter, with two and
//!   with headers that are borrowed 18, of which the answer itself is 4: it is encoded when first read and kept until the policy
//!   is decided anew.
//! - **The store packs its points.** A pod of 27 series took 13,763 bytes for 100 s at 5 s; with times kept once per batch and
//!   values as differences it takes 3,787, bit for bit the same values.
//! - **The quantile without load is interpolated by the bucket's mean.** Plain interpolation reads a constant 101 ms in a
//!   bucket of 100 to 250 ms as 242 ms, over a target of 150 ms that the service meets.

#[cfg(test)]
mod held_docs;
pub mod time;
pub mod units;

pub mod quantity;
pub mod sample;

pub mod config;
pub mod probes;
pub mod telemetry;

pub mod signals;

pub mod pprof;
pub mod store;

pub mod policy;

#[cfg(feature = "agent")]
pub mod agent;

#[cfg(all(test, feature = "adapter"))]
mod kept_log;
#[cfg(all(test, feature = "adapter"))]
mod scripted_kubernetes;

#[cfg(feature = "adapter")]
pub mod adapter;
#[cfg(feature = "adapter")]
pub mod controller;
#[cfg(feature = "adapter")]
pub mod sources;

#[cfg(feature = "adapter")]
pub mod pipeline;

#[cfg(feature = "adapter")]
pub mod conformance;

#[cfg(all(feature = "agent", feature = "adapter"))]
pub mod cli;
#[cfg(all(feature = "agent", feature = "adapter"))]
pub mod command;

#[cfg(all(any(fuzzing, test), feature = "agent", feature = "adapter"))]
#[doc(hidden)]
pub mod fuzzing;

#[cfg(feature = "agent")]
pub use agent::{Agent, instrument, spawn};
