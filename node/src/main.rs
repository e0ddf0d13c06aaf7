//! `signaldb`: a node, and the commands to look after one.

use std::process::ExitCode;

fn main() -> ExitCode {
    signaldb_node::cli::main()
}
