//! What the nodes of a cluster know and nobody else does.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Random text of a founding. It is in the log and the snapshots of the meta group and nowhere else: not in the tables, the
/// catalog or the database of the tenants, which others may read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterSecret(String);

impl ClusterSecret {
    /// 244 random bits.
    pub(super) fn random() -> Self {
        Self(format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"***\"")
    }
}
