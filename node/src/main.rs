//! `signaldb`: a node, and the commands to look after one.

use std::process::ExitCode;

/// Column builders ask for megabytes and give them back; glibc hands those back to the kernel each time and gets them
/// zeroed again, which was half of the node's CPU under load (perf: clear_page).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    signaldb_node::cli::main()
}
