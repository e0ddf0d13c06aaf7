//! A network namespace for each node and a router between them: what is lost on the way is lost without a word to either
//! end, as in a real network, and TCP finds out by itself.
//!
//! The router is the network namespace that this process was started in, which has to be of its own (`unshare --net
//! --mount`; `make jepsen-full` does that). A cable (a veth pair) leads from it to each node, which has a subnet of its own.
//! Clients are beside the router, and so are store and catalog, under addresses of their own. Rules of nftables in the
//! router drop, refuse or lose packets and count them; a token bucket makes a cable narrow. Nothing of it is in the
//! machine's own network, and all of it goes with the last process inside.
//!
//! What is wrong at a time is a value, [`State`]; [`steps`] says which commands lead from one to the next.
//! Source: unshare(1), nsenter(1), ip-link(8), nft(8), tc-tbf(8).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::cluster::{NODES, pairs};
use crate::command::{feed, run};
use crate::link::Mode;

/// Forwards packets between the interfaces of a namespace.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// What a cable carries while it is narrow: less than a busy leader sends.
const NARROW: &str = "4mbit";
/// What a narrow cable lets pass at once.
const BURST: &str = "16kb";
/// How long a connection to a port where nobody listens may take to be refused; a lost packet is sent again after a second.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);
/// A port where nobody listens.
const CLOSED: u16 = 1;
/// The table, its counters and its chains. They are made once; rules come and go.
const TABLE: &str = "\
table ip jepsen {
  counter links { }
  counter store { }
  counter catalog { }
  chain forward { type filter hook forward priority 0; policy accept;
  }
  chain input { type filter hook input priority 0; policy accept;
  }
  chain output { type filter hook output priority 0; policy accept;
  }
}
";

/// Who serves all nodes from beside the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Store,
    Catalog,
}

impl Service {
    pub(crate) fn address(self) -> Ipv4Addr {
        match self {
            Self::Store => Ipv4Addr::new(10, 77, 0, 2),
            Self::Catalog => Ipv4Addr::new(10, 77, 0, 3),
        }
    }

    /// Counts what is lost between it and nodes.
    fn counter(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Catalog => "catalog",
        }
    }
}

/// What is wrong with the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    /// By (from, to).
    links: BTreeMap<(usize, usize), Mode>,
    /// Of what these and their peers send each other, so many packets of a hundred are lost.
    lossy: BTreeMap<usize, u8>,
    /// Nothing gets to or from these.
    silenced: BTreeSet<usize>,
    /// Their cables are pulled: the router says so to whoever sends to them.
    pulled: BTreeSet<usize>,
    /// Nothing gets through between these.
    cut: BTreeSet<(Service, usize)>,
}

impl State {
    /// Without what is wrong between nodes; services stay cut off.
    fn healed(self) -> Self {
        Self { cut: self.cut, ..Self::default() }
    }

    /// Nodes with a narrow cable, and how long packets wait in it before they are lost.
    fn narrow(&self) -> BTreeMap<usize, Duration> {
        let mut narrow: BTreeMap<usize, Duration> = BTreeMap::new();
        for ((from, _), mode) in &self.links {
            if let Mode::Delay(delay) = mode {
                let longest = narrow.entry(*from).or_default();
                *longest = (*longest).max(*delay);
            }
        }
        narrow
    }
}

/// A command, in the namespace of a node or at the router.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    node: Option<usize>,
    words: Vec<OsString>,
    input: String,
}

impl Step {
    fn at(node: Option<usize>, words: &str) -> Self {
        Self { node, words: words.split_whitespace().map(OsString::from).collect(), input: String::new() }
    }

    fn nft(input: String) -> Self {
        Self { input, ..Self::at(None, "nft -f -") }
    }
}

/// The namespaces of all nodes, and the router. Dropping it lets go of them; processes in them should be gone by then.
/// Everything here blocks.
#[derive(Debug)]
pub(crate) struct Namespaces {
    dir: PathBuf,
    /// Each keeps a namespace while nothing is in it.
    files: Vec<PathBuf>,
    state: Mutex<State>,
}

impl Namespaces {
    /// Makes them, with files in `dir`, and sees that packets pass, and that they can be stopped.
    pub(crate) fn make(dir: &Path) -> anyhow::Result<Self> {
        let routes = std::fs::read_to_string("/proc/net/route").context("look at the routes of this namespace")?;
        ensure!(is_fresh(&routes), "this process shares its network with others: unshare --net --mount gives it one");
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let mut made = Self { dir: dir.to_owned(), files: Vec::new(), state: Mutex::default() };
        for node in 0..NODES {
            let file = dir.join(format!("node-{}", node + 1));
            File::create(&file).with_context(|| format!("create {}", file.display()))?;
            let keep = option("--net=", &file);
            made.files.push(file);
            run(Command::new("unshare").arg(keep).arg("true")).context("make a network namespace")?;
        }
        for step in setup(&made.files) {
            made.take(&step)?;
        }
        std::fs::write(FORWARD, "1").with_context(|| format!("write {FORWARD}"))?;
        made.try_out()?;
        Ok(made)
    }

    /// Whether the network does what faults need.
    fn try_out(&self) -> anyhow::Result<()> {
        ensure!(is_refused(0), "a namespace cannot be reached");
        self.silence(0)?;
        ensure!(!is_refused(0), "packets that are to be dropped arrive");
        self.heal()?;
        ensure!(is_refused(0), "a namespace cannot be reached again");
        ensure!(self.disturbed()? > 0, "packets that were dropped are not counted");
        // Whether this kernel knows what else rules and cables need.
        self.lose(0, 50)?;
        self.set_links(&[((0, 1), Mode::Reset), ((1, 0), Mode::Delay(Duration::from_millis(100)))])?;
        self.heal()
    }

    /// The same command, in the namespace of a node: its process gets no child, and becomes what `command` is to run.
    pub(crate) fn enter(&self, node: usize, command: &Command) -> Command {
        enter(&self.files[node], command)
    }

    /// Puts links, by (from, to), into modes.
    pub(crate) fn set_links(&self, modes: &[((usize, usize), Mode)]) -> anyhow::Result<()> {
        self.change(|state| State { links: state.links.into_iter().chain(modes.iter().copied()).collect(), ..state })
    }

    /// Loses so many packets of a hundred between a node and its peers, either way.
    pub(crate) fn lose(&self, node: usize, percent: u8) -> anyhow::Result<()> {
        self.change(|mut state| {
            state.lossy.insert(node, percent);
            state
        })
    }

    /// Loses everything to and from a node; nobody is told.
    pub(crate) fn silence(&self, node: usize) -> anyhow::Result<()> {
        self.change(|mut state| {
            state.silenced.insert(node);
            state
        })
    }

    /// Pulls a node's cable, or puts it back. Who sends to the node is told that it cannot be reached.
    pub(crate) fn pull(&self, node: usize, pulled: bool) -> anyhow::Result<()> {
        self.change(|mut state| {
            if pulled {
                state.pulled.insert(node);
            } else {
                state.pulled.remove(&node);
            }
            state
        })
    }

    /// Ends whatever is wrong between nodes.
    pub(crate) fn heal(&self) -> anyhow::Result<()> {
        self.change(State::healed)
    }

    /// Loses everything between a service and these nodes.
    pub(crate) fn cut(&self, service: Service, nodes: &[usize]) -> anyhow::Result<()> {
        self.change(|mut state| {
            state.cut.extend(nodes.iter().map(|node| (service, *node)));
            state
        })
    }

    /// Ends whatever is wrong between services and nodes.
    pub(crate) fn connect_services(&self) -> anyhow::Result<()> {
        self.change(|state| State { cut: BTreeSet::new(), ..state })
    }

    /// Packets that were lost between nodes so far, and those that waited in cables which are narrow now.
    pub(crate) fn disturbed(&self) -> anyhow::Result<u64> {
        let narrow = self.state.lock().unwrap_or_else(PoisonError::into_inner).narrow();
        let mut disturbed = self.counted("links")?;
        for node in narrow.into_keys() {
            let said = self.take(&Step::at(Some(node), "tc -s -j qdisc show dev eth0"))?;
            disturbed += waited(&said).context("what tc says of a cable")?;
        }
        Ok(disturbed)
    }

    /// Packets that were lost between services and nodes so far.
    pub(crate) fn lost_of_services(&self) -> anyhow::Result<u64> {
        Ok(self.counted(Service::Store.counter())? + self.counted(Service::Catalog.counter())?)
    }

    fn counted(&self, counter: &str) -> anyhow::Result<u64> {
        let said = self.take(&Step::at(None, &format!("nft -j list counter ip jepsen {counter}")))?;
        packets(&said).context("what nft says of a counter")
    }

    fn change(&self, change: impl FnOnce(State) -> State) -> anyhow::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = change(state.clone());
        for step in steps(&state, &next) {
            self.take(&step)?;
        }
        *state = next;
        Ok(())
    }

    fn take(&self, step: &Step) -> anyhow::Result<String> {
        let (program, arguments) = step.words.split_first().context("a program")?;
        let mut command = Command::new(program);
        command.args(arguments);
        match step.node {
            Some(node) => feed(&mut self.enter(node, &command), &step.input),
            None => feed(&mut command, &step.input),
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for file in &self.files {
            // A process that is left keeps its namespace; cables and rules end with the router's.
            let _ = run(Command::new("umount").arg(file));
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Where a node listens.
pub(crate) fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, subnet(node), 2)
}

fn subnet(node: usize) -> u8 {
    u8::try_from(node + 1).expect("there are few nodes")
}

/// Whether nobody uses this namespace yet, by `/proc/net/route`: one that was just made has no route.
fn is_fresh(routes: &str) -> bool {
    routes.lines().skip(1).all(|line| line.trim().is_empty())
}

/// Whether a node says, through its cable, that nobody listens there.
fn is_refused(node: usize) -> bool {
    let refused = TcpStream::connect_timeout(&SocketAddr::from((address(node), CLOSED)), TRY_TIMEOUT);
    refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// `--name=` and a path, as one argument.
fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}

/// Both programs in front become the next one, so that the process is the node's. The environment is set by the last of
/// them: what a library does when it is loaded into a process may not be done twice.
fn enter(file: &Path, command: &Command) -> Command {
    let mut inside = Command::new("nsenter");
    inside.arg(option("--net=", file)).args(["--", "env"]);
    for (name, _) in command.get_envs().filter(|(_, value)| value.is_none()) {
        inside.arg("-u").arg(name);
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let mut pair = name.to_owned();
            pair.push("=");
            pair.push(value);
            inside.arg(pair);
        }
    }
    inside.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        inside.current_dir(dir);
    }
    inside
}

/// Cables, addresses, routes and rules, for namespaces that are kept by these files.
fn setup(files: &[PathBuf]) -> Vec<Step> {
    let mut steps = vec![Step::at(None, "ip link set lo up")];
    for service in [Service::Store, Service::Catalog] {
        steps.push(Step::at(None, &format!("ip address add {}/32 dev lo", service.address())));
    }
    for (node, file) in files.iter().enumerate() {
        let (cable, subnet) = (cable(node), subnet(node));
        let mut add = Step::at(None, &format!("ip link add {cable} type veth peer name eth0 netns"));
        add.words.push(file.into());
        steps.push(add);
        for line in [format!("ip address add 10.77.{subnet}.1/24 dev {cable}"), format!("ip link set {cable} up")] {
            steps.push(Step::at(None, &line));
        }
        for line in [
            "ip link set lo up".to_owned(),
            format!("ip address add {}/24 dev eth0", address(node)),
            "ip link set eth0 up".to_owned(),
            format!("ip route add default via 10.77.{subnet}.1"),
        ] {
            steps.push(Step::at(Some(node), &line));
        }
    }
    steps.push(Step::nft(TABLE.to_owned()));
    steps
}

fn cable(node: usize) -> String {
    format!("cable{}", node + 1)
}

/// What leads from one state to the next. Rules change all at once.
fn steps(old: &State, new: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    let script = rules(new);
    if script != rules(old) {
        steps.push(Step::nft(script));
    }
    for (nodes, to) in [(new.pulled.difference(&old.pulled), "down"), (old.pulled.difference(&new.pulled), "up")] {
        steps.extend(nodes.map(|node| Step::at(None, &format!("ip link set {} {to}", cable(*node)))));
    }
    let (before, after) = (old.narrow(), new.narrow());
    for node in before.keys().filter(|node| !after.contains_key(*node)) {
        steps.push(Step::at(Some(*node), "tc qdisc delete dev eth0 root"));
    }
    for (node, delay) in after.iter().filter(|(node, delay)| before.get(*node) != Some(*delay)) {
        let bucket = format!("rate {NARROW} burst {BURST} latency {}ms", delay.as_millis());
        steps.push(Step::at(Some(*node), &format!("tc qdisc replace dev eth0 root tbf {bucket}")));
    }
    steps
}

/// All rules of a state, as nft reads them: in place of those there were.
fn rules(state: &State) -> String {
    let mut rules: Vec<(&str, String)> = Vec::new();
    for ((from, to), mode) in &state.links {
        let what = match mode {
            // A narrow cable is none of the router's business.
            Mode::Pass | Mode::Delay(_) => continue,
            Mode::Hold => "counter name \"links\" drop",
            Mode::Reset => "meta l4proto tcp counter name \"links\" reject with tcp reset",
        };
        rules.push(("forward", format!("ip saddr {} ip daddr {} {what}", address(*from), address(*to))));
    }
    for (node, percent) in &state.lossy {
        for (from, to) in pairs().filter(|(from, to)| from == node || to == node) {
            let (from, to) = (address(from), address(to));
            let lost = format!("numgen random mod 100 < {percent} counter name \"links\" drop");
            rules.push(("forward", format!("ip saddr {from} ip daddr {to} {lost}")));
        }
    }
    for node in &state.silenced {
        for (chain, side) in [("forward", "saddr"), ("forward", "daddr"), ("input", "saddr"), ("output", "daddr")] {
            rules.push((chain, format!("ip {side} {} counter name \"links\" drop", address(*node))));
        }
    }
    for (service, node) in &state.cut {
        let (service, node, lost) =
            (service.address(), address(*node), format!("counter name \"{}\" drop", service.counter()));
        rules.push(("input", format!("ip saddr {node} ip daddr {service} {lost}")));
        rules.push(("output", format!("ip saddr {service} ip daddr {node} {lost}")));
    }
    let flush = ["forward", "input", "output"].map(|chain| format!("flush chain ip jepsen {chain}\n"));
    let add = rules.into_iter().map(|(chain, rule)| format!("add rule ip jepsen {chain} {rule}\n"));
    flush.into_iter().chain(add).collect()
}

/// What a counter holds, by `nft -j`.
fn packets(said: &str) -> Option<u64> {
    let said: Value = serde_json::from_str(said).ok()?;
    said["nftables"].as_array()?.iter().find_map(|item| item["counter"]["packets"].as_u64())
}

/// How often packets had to wait in a token bucket, or found no room in it, by `tc -s -j`.
fn waited(said: &str) -> Option<u64> {
    let said: Value = serde_json::from_str(said).ok()?;
    let bucket = said.as_array()?.iter().find(|qdisc| qdisc["kind"] == "tbf")?;
    Some(bucket["overlimits"].as_u64()? + bucket["drops"].as_u64()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands as somebody would type them, those of a node after its name.
    fn lines(steps: &[Step]) -> Vec<String> {
        let line = |step: &Step| {
            let words: Vec<String> = step.words.iter().map(|word| word.display().to_string()).collect();
            let place = step.node.map_or_else(String::new, |node| format!("{}: ", node + 1));
            format!("{place}{}", words.join(" "))
        };
        steps.iter().map(line).collect()
    }

    /// The rules of a state, without what is always there.
    fn of(state: &State) -> Vec<String> {
        let script = rules(state);
        let rules = script.lines().filter_map(|line| line.strip_prefix("add rule ip jepsen "));
        rules.map(str::to_owned).collect()
    }

    #[test]
    fn only_a_namespace_without_routes_is_ones_own() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        assert!(is_fresh(head) && is_fresh("") && is_fresh(&format!("{head}\n")));
        assert!(!is_fresh(&format!("{head}eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")));
    }

    #[test]
    fn each_node_has_a_cable_to_the_router_and_reaches_the_others_over_it() {
        let files = ["/run 1/node-1", "/run 1/node-2", "/run 1/node-3"].map(PathBuf::from);
        let steps = setup(&files);
        let lines = lines(&steps);
        let of_the_second: Vec<&str> =
            lines.iter().map(String::as_str).skip_while(|line| !line.contains("cable2")).take(7).collect();
        let expected = [
            "ip link add cable2 type veth peer name eth0 netns /run 1/node-2",
            "ip address add 10.77.2.1/24 dev cable2",
            "ip link set cable2 up",
            "2: ip link set lo up",
            "2: ip address add 10.77.2.2/24 dev eth0",
            "2: ip link set eth0 up",
            "2: ip route add default via 10.77.2.1",
        ];
        assert_eq!(of_the_second, expected);
        let add = steps.iter().find(|step| step.words.iter().any(|word| word == "cable2")).expect("a cable");
        assert_eq!(add.words.last(), Some(&OsString::from("/run 1/node-2")), "a path is one word");
        assert_eq!(lines[0], "ip link set lo up", "relays need it too, should the rest fail");
        assert_eq!(lines[1..3], ["ip address add 10.77.0.2/32 dev lo", "ip address add 10.77.0.3/32 dev lo"]);
        assert_eq!(steps.last().map(|step| step.input.as_str()), Some(TABLE));
    }

    #[test]
    fn a_cut_is_silent_and_has_a_direction_and_a_reset_is_not() {
        let links = BTreeMap::from([((0, 1), Mode::Hold), ((1, 0), Mode::Pass), ((2, 0), Mode::Reset)]);
        let expected = [
            "forward ip saddr 10.77.1.2 ip daddr 10.77.2.2 counter name \"links\" drop",
            "forward ip saddr 10.77.3.2 ip daddr 10.77.1.2 meta l4proto tcp counter name \"links\" reject with tcp reset",
        ];
        assert_eq!(of(&State { links, ..State::default() }), expected);
    }

    #[test]
    fn a_silenced_node_reaches_nobody_and_a_lossy_one_loses_what_its_peers_send_and_get() {
        let silenced = of(&State { silenced: BTreeSet::from([1]), ..State::default() });
        let drop = |rule: &str| format!("{rule} 10.77.2.2 counter name \"links\" drop");
        assert_eq!(silenced, ["forward ip saddr", "forward ip daddr", "input ip saddr", "output ip daddr"].map(drop));
        let lossy = of(&State { lossy: BTreeMap::from([(2, 7)]), ..State::default() });
        assert_eq!(lossy.len(), 4, "two peers, both ways");
        let first =
            "forward ip saddr 10.77.1.2 ip daddr 10.77.3.2 numgen random mod 100 < 7 counter name \"links\" drop";
        assert_eq!(lossy[0], first);
    }

    #[test]
    fn a_service_is_cut_off_from_some_nodes_and_stays_so_when_links_heal() {
        let cut = BTreeSet::from([(Service::Store, 2)]);
        let state = State { cut, silenced: BTreeSet::from([0]), ..State::default() };
        let expected = [
            "input ip saddr 10.77.3.2 ip daddr 10.77.0.2 counter name \"store\" drop",
            "output ip saddr 10.77.0.2 ip daddr 10.77.3.2 counter name \"store\" drop",
        ];
        assert_eq!(of(&state.healed()), expected);
    }

    #[test]
    fn rules_change_as_a_whole_and_nothing_is_done_where_nothing_changes() {
        let cut = State { silenced: BTreeSet::from([0]), ..State::default() };
        assert!(steps(&cut, &cut).is_empty());
        let healed = steps(&cut, &State::default());
        assert_eq!(lines(&healed), ["nft -f -"]);
        let nothing = "flush chain ip jepsen forward\nflush chain ip jepsen input\nflush chain ip jepsen output\n";
        assert_eq!(healed[0].input, nothing);
    }

    #[test]
    fn cables_are_pulled_narrowed_and_put_right() {
        let delay = |millis| Mode::Delay(Duration::from_millis(millis));
        let links = BTreeMap::from([((0, 1), delay(20)), ((0, 2), delay(90)), ((1, 2), Mode::Pass)]);
        let wrong = State { links, pulled: BTreeSet::from([2]), ..State::default() };
        let pull_and_narrow =
            ["ip link set cable3 down", "1: tc qdisc replace dev eth0 root tbf rate 4mbit burst 16kb latency 90ms"];
        assert_eq!(lines(&steps(&State::default(), &wrong)), pull_and_narrow);
        let put_right = ["ip link set cable3 up", "1: tc qdisc delete dev eth0 root"];
        assert_eq!(lines(&steps(&wrong, &wrong.clone().healed())), put_right);
    }

    #[test]
    fn a_command_is_entered_with_its_environment_which_the_last_program_gets() {
        let mut command = Command::new("/bin/node");
        command
            .args(["server", "--set", "a=b c"])
            .current_dir("/data")
            .env("LD_PRELOAD", "/lib/x.so")
            .env_remove("OLD");
        let inside = enter(Path::new("/run/node-1"), &command);
        let words: Vec<String> = inside.get_args().map(|word| word.display().to_string()).collect();
        let expected = [
            "--net=/run/node-1",
            "--",
            "env",
            "-u",
            "OLD",
            "LD_PRELOAD=/lib/x.so",
            "/bin/node",
            "server",
            "--set",
            "a=b c",
        ];
        assert_eq!(
            (inside.get_program().display().to_string(), words),
            ("nsenter".to_owned(), expected.map(str::to_owned).to_vec())
        );
        assert_eq!(inside.get_current_dir(), Some(Path::new("/data")));
        assert_eq!(inside.get_envs().count(), 0, "nothing is loaded into the programs in front");
    }

    #[test]
    fn what_was_lost_and_what_waited_is_counted() {
        let counter = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"counter": {"family": "ip", "name": "links",
            "table": "jepsen", "handle": 4, "packets": 3, "bytes": 180}}]}"#;
        assert_eq!(packets(counter), Some(3));
        assert_eq!(packets("nonsense"), None);
        let bucket = r#"[{"kind":"tbf","handle":"8005:","root":true,"bytes":9,"packets":2,"drops":4,"overlimits":38}]"#;
        assert_eq!(waited(bucket), Some(42));
        assert_eq!(waited(r#"[{"kind":"noqueue"}]"#), None);
    }
}
