//! Names of tenants and datasets, numbers of groups and nodes.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest tenant or dataset name, in bytes (CONTRACT, "Running").
const NAME_BYTES_MAX: usize = 63;

/// A tenant or dataset name that is not `[a-z0-9][a-z0-9_-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} name {name:?} is not [a-z0-9][a-z0-9_-]{{0,62}}")]
pub struct InvalidName {
    kind: &'static str,
    name: String,
}

fn parse_name(kind: &'static str, name: &str) -> Result<Arc<str>, InvalidName> {
    let lead = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let rest = |b: u8| lead(b) || b == b'_' || b == b'-';
    let bytes = name.as_bytes();
    let valid =
        bytes.len() <= NAME_BYTES_MAX && bytes.first().copied().is_some_and(lead) && bytes.iter().copied().all(rest);
    if valid { Ok(Arc::from(name)) } else { Err(InvalidName { kind, name: name.chars().take(80).collect() }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the name against CONTRACT's pattern.
            ///
            /// # Errors
            /// [`InvalidName`] quotes at most 80 characters of the name.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                parse_name($kind, name).map(Self)
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
    };
}

name_type!(
    /// A tenant: the unit of isolation, of keys and of placement.
    TenantId,
    "tenant"
);
name_type!(
    /// A dataset within a tenant; together they are an Iceberg namespace.
    DatasetId,
    "dataset"
);

/// One Raft group of the cluster; group 0 is the meta group, data groups start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group that holds what the whole cluster must agree on.
    pub const META: GroupId = GroupId(0);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node of the cluster. Never reused after a node was removed or lost its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A kind of table, as the log names it. `signals` knows which code is which table; the log only carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableCode(pub u8);

/// Which table a row belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId {
    pub tenant: TenantId,
    pub dataset: DatasetId,
    pub code: TableCode,
}

impl TableId {
    /// The Iceberg namespace, as the SQL catalog stores it.
    pub fn namespace(&self) -> String {
        format!("{}.{}", self.tenant, self.dataset)
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}#{}", self.tenant, self.dataset, self.code.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_contract() {
        let long = "a".repeat(63);
        for good in ["a", "0", "acme", "a-b_c", long.as_str()] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "A", "-a", "_a", "a.b", "a b", "ä", "a/b", too_long.as_str()] {
            assert!(DatasetId::new(bad).is_err(), "{bad}");
        }
    }
}
