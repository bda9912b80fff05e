//! One composition root per subcommand: each owns every task it starts.

pub mod demo;
