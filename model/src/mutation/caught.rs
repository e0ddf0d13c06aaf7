//! A mutated server and the test that has to notice: the test binary runs itself, with the mutation in the environment of
//! the new process.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Mutation, VARIABLE};

/// What decides between threads may take more than one attempt.
const RUNS_MAX: usize = 3;
/// The end of what a run said that is repeated when no run noticed anything: three may be long.
const SAID_BYTES_MAX: usize = 64 << 10;
/// How long one run may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);
/// How often the run is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How a run of a mutated server came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    /// After [`RUN_TIMEOUT`] it was still there, and was ended.
    TimedOut,
}

/// What one run says about its mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Caught,
    /// Who is wrong may also fail to come so far: another run may notice.
    NotYet(&'static str),
    /// No run will ever notice anything.
    NoSuchTest,
}

/// `said` is everything that the run said, of which `anomaly` is to be a part.
fn verdict(end: End, said: &str, anomaly: &str) -> Verdict {
    match end {
        // It may hang before it says anything.
        End::TimedOut => Verdict::NotYet("did not end in time"),
        End::Passed | End::Failed if !said.contains("running 1 test") => Verdict::NoSuchTest,
        End::Failed if said.contains(anomaly) => Verdict::Caught,
        End::Failed => Verdict::NotYet("failed for another reason"),
        End::Passed => Verdict::NotYet("passed"),
    }
}

/// Runs `test` of this test binary, by its full name, with the mutation, and expects it to fail and to say `anomaly`. That
/// it passes without the mutation is seen where it runs with all others.
///
/// # Panics
/// When the mutation is not caught in [`RUNS_MAX`] runs, a failure for another reason and a run that does not end being
/// none, and when there is no test of that name.
pub fn assert_caught(mutation: Mutation, test: &str, anomaly: &str) {
    let (name, mut others) = (mutation.name(), String::new());
    for run in 1..=RUNS_MAX {
        let (end, said) = run_mutated(mutation, test);
        match verdict(end, &said, anomaly) {
            Verdict::Caught => return println!("{name} was caught in run {run} of {test}"),
            Verdict::NotYet(outcome) => {
                // Somebody waits for what may take minutes more.
                println!("{name}: run {run} of {test} {outcome}");
                others.push_str(&format!("run {run} {outcome}:\n{}\n", end_of(&said)));
            }
            Verdict::NoSuchTest => panic!("there is no test {test} here:\n{said}"),
        }
    }
    panic!(
        "{name} was not caught: in {RUNS_MAX} runs of at most {RUN_TIMEOUT:?} {test} did not fail for {anomaly:?}\n{others}"
    );
}

/// The last of what a run said, where its failure is.
fn end_of(said: &str) -> &str {
    &said[said.ceil_char_boundary(said.len().saturating_sub(SAID_BYTES_MAX))..]
}

/// How the run ended, and everything that it said.
fn run_mutated(mutation: Mutation, test: &str) -> (End, String) {
    let this = std::env::current_exe().expect("a test binary knows where it is");
    let mut child = Command::new(this)
        .args(["--exact", test, "--test-threads", "1"])
        .env(VARIABLE, mutation.name())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // With the nodes that it starts.
        .process_group(0)
        .spawn()
        .expect("the test binary runs");
    let (stdout, stderr) = (child.stdout.take().expect("is piped"), child.stderr.take().expect("is piped"));
    std::thread::scope(|scope| {
        let (out, err) = (scope.spawn(|| read(stdout)), scope.spawn(|| read(stderr)));
        let begun = Instant::now();
        let end = loop {
            match child.try_wait().expect("the process can be asked") {
                Some(status) if status.success() => break End::Passed,
                Some(_) => break End::Failed,
                None if begun.elapsed() > RUN_TIMEOUT => {
                    end_group(&mut child);
                    break End::TimedOut;
                }
                None => std::thread::sleep(POLL),
            }
        };
        (end, [out, err].map(|reader| reader.join().expect("reads")).concat())
    })
}

/// Ends a run that hangs, with all that it started: nodes would outlive it, and whoever holds its pipes keeps them open.
fn end_group(child: &mut Child) {
    let group = format!("-{}", child.id());
    let ended = Command::new("kill").args(["-KILL", "--", &group]).status();
    if !ended.is_ok_and(|status| status.success()) {
        child.kill().expect("the process can be ended");
    }
    child.wait().expect("the process can be asked");
}

/// Everything that comes until the end; the bytes of a crash need not be text.
fn read(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error still tells something.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_that_names_the_anomaly_catches_and_a_run_without_an_end_is_not_the_last() {
        let (begun, other) = ("running 1 test\n", "running 0 tests\n");
        for (end, said, expected) in [
            (End::Failed, format!("{begun}2 rows missing"), Verdict::Caught),
            (End::Failed, format!("{begun}no leader in time"), Verdict::NotYet("failed for another reason")),
            (End::Passed, format!("{begun}2 rows missing"), Verdict::NotYet("passed")),
            (End::TimedOut, format!("{begun}2 rows missing"), Verdict::NotYet("did not end in time")),
            (End::TimedOut, String::new(), Verdict::NotYet("did not end in time")),
            (End::Passed, other.to_owned(), Verdict::NoSuchTest),
            (End::Failed, other.to_owned(), Verdict::NoSuchTest),
        ] {
            assert_eq!(verdict(end, &said, "2 rows missing"), expected, "{end:?} {said:?}");
        }
    }

    #[test]
    fn the_end_of_a_long_output_is_shown_and_letters_stay_whole() {
        let said = format!("x{}", "\u{e9}".repeat(SAID_BYTES_MAX));
        let shown = end_of(&said);
        assert!(shown.len() <= SAID_BYTES_MAX && said.ends_with(shown) && shown.len() > SAID_BYTES_MAX - 4);
        assert_eq!(end_of("short"), "short");
    }
}
