//! How nodes reach each other, and what goes wrong on the way: through relays of this process, or over a network of their
//! own where that can be.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, bail};

use crate::cluster::{NODES, pairs};
use crate::link::{Links, Mode, Relay};
use crate::namespace::{self, Namespaces, Service};

/// Namespaces with files in `dir`, or why it has to be relays: there can be nothing else, or they are asked for.
pub(crate) async fn namespaces(dir: &Path, relays: bool) -> anyhow::Result<Result<Namespaces, String>> {
    if relays {
        return Ok(Err("relays were asked for".to_owned()));
    }
    let dir = dir.to_owned();
    let made = tokio::task::spawn_blocking(move || Namespaces::make(&dir)).await?;
    Ok(made.map_err(|error| format!("{error:#}")))
}

/// Between the nodes of a cluster.
pub(crate) enum Network {
    Relays {
        links: Links,
        /// By (from, to).
        relays: BTreeMap<(usize, usize), Relay>,
        /// Why it is not namespaces.
        why: String,
    },
    Namespaces(Arc<Namespaces>),
}

impl Network {
    /// Makes one for nodes that listen to their peers on these ports.
    pub(crate) async fn make(namespaces: Result<Namespaces, String>, ports: [u16; NODES]) -> anyhow::Result<Self> {
        let why = match namespaces {
            Ok(namespaces) => return Ok(Self::Namespaces(Arc::new(namespaces))),
            Err(why) => why,
        };
        let (links, mut relays) = (Links::default(), BTreeMap::new());
        for (from, to) in pairs() {
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[to]));
            relays.insert((from, to), links.relay(from, to, target).await?);
        }
        Ok(Self::Relays { links, relays, why })
    }

    /// In a few words, for reports.
    pub(crate) fn about(&self) -> String {
        match self {
            Self::Relays { why, .. } => format!("relays of this test; no network namespaces: {why}"),
            Self::Namespaces(_) => "a network namespace for each node".to_owned(),
        }
    }

    /// Why there are no namespaces.
    pub(crate) fn lacks_namespaces(&self) -> Option<&str> {
        match self {
            Self::Relays { why, .. } => Some(why),
            Self::Namespaces(_) => None,
        }
    }

    /// Where a node listens.
    pub(crate) fn host(&self, node: usize) -> Ipv4Addr {
        match self {
            Self::Relays { .. } => Ipv4Addr::LOCALHOST,
            Self::Namespaces(_) => namespace::address(node),
        }
    }

    /// Where a service listens.
    pub(crate) fn service(&self, service: Service) -> Ipv4Addr {
        match self {
            Self::Relays { .. } => Ipv4Addr::LOCALHOST,
            Self::Namespaces(_) => service.address(),
        }
    }

    /// Where `from` finds `to`, which listens to its peers on `port`.
    pub(crate) fn peer(&self, from: usize, to: usize, port: u16) -> SocketAddr {
        match self {
            Self::Relays { relays, .. } if from != to => relays[&(from, to)].address,
            _ => SocketAddr::from((self.host(to), port)),
        }
    }

    /// The same command, where a node runs.
    pub(crate) fn enter(&self, node: usize, command: Command) -> Command {
        match self {
            Self::Relays { .. } => command,
            Self::Namespaces(namespaces) => namespaces.enter(node, &command),
        }
    }

    /// Puts links, by (from, to), into modes.
    pub(crate) async fn set(&self, modes: Vec<((usize, usize), Mode)>) -> anyhow::Result<()> {
        match self {
            Self::Relays { links, .. } => {
                modes.into_iter().for_each(|((from, to), mode)| links.set(from, to, mode));
                Ok(())
            }
            Self::Namespaces(_) => self.act(move |namespaces| namespaces.set_links(&modes)).await,
        }
    }

    /// Ends whatever is wrong between nodes; services stay cut off.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        match self {
            Self::Relays { links, .. } => {
                links.heal();
                Ok(())
            }
            Self::Namespaces(_) => self.act(Namespaces::heal).await,
        }
    }

    /// What was held, delayed, cut or lost between nodes so far: chunks or packets.
    pub(crate) async fn disturbed(&self) -> anyhow::Result<u64> {
        match self {
            Self::Relays { links, .. } => Ok(links.disturbed()),
            Self::Namespaces(_) => self.act(Namespaces::disturbed).await,
        }
    }

    /// Loses everything between a service and these nodes.
    pub(crate) async fn cut(&self, service: Service, nodes: Vec<usize>) -> anyhow::Result<()> {
        self.act(move |namespaces| namespaces.cut(service, &nodes)).await
    }

    /// Has every node reach every service again.
    pub(crate) async fn connect_services(&self) -> anyhow::Result<()> {
        match self {
            // Without namespaces nothing is ever cut off from them.
            Self::Relays { .. } => Ok(()),
            Self::Namespaces(_) => self.act(Namespaces::connect_services).await,
        }
    }

    /// Packets that were lost between services and nodes so far.
    pub(crate) async fn lost_of_services(&self) -> anyhow::Result<u64> {
        match self {
            Self::Relays { .. } => Ok(0),
            Self::Namespaces(_) => self.act(Namespaces::lost_of_services).await,
        }
    }

    /// Has the namespaces do something that blocks.
    pub(crate) async fn act<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Namespaces) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let namespaces = match self {
            Self::Relays { why, .. } => bail!("nodes have no network namespaces: {why}"),
            Self::Namespaces(namespaces) => Arc::clone(namespaces),
        };
        tokio::task::spawn_blocking(move || what(&namespaces)).await.context("a network that changes")?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn over_relays_nodes_know_their_peers_by_other_addresses_and_namespaces_are_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let network = Network::make(namespaces(dir.path(), true).await?, [1, 2, 3]).await?;
        assert_eq!(network.peer(0, 0, 1), SocketAddr::from(([127, 0, 0, 1], 1)), "it finds itself without one");
        let addresses: std::collections::BTreeSet<SocketAddr> =
            pairs().map(|(from, to)| network.peer(from, to, 1)).collect();
        assert_eq!(addresses.len(), NODES * (NODES - 1), "each direction has a relay of its own");
        network.set(vec![((0, 1), Mode::Hold)]).await?;
        network.connect_services().await?;
        let refused = network.cut(Service::Store, vec![0]).await.expect_err("relays do not lead there").to_string();
        assert!(refused.contains("relays were asked for"), "{refused}");
        network.heal().await
    }
}
