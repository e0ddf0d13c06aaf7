//! Semantic-convention attributes that have a typed column of their own and are left out of the map (DESIGN section 8).
//!
//! The order is persisted in `..._attribute_types` columns: append, never reorder or remove.

/// Type of a promoted column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromotedType {
    Text,
    Integer,
}

/// A promoted attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    pub key: &'static str,
    pub column: &'static str,
    pub kind: PromotedType,
}

const fn text(key: &'static str, column: &'static str) -> Promoted {
    Promoted { key, column, kind: PromotedType::Text }
}

const fn integer(key: &'static str, column: &'static str) -> Promoted {
    Promoted { key, column, kind: PromotedType::Integer }
}

/// Promoted from resources, in every table.
pub const RESOURCE: &[Promoted] = &[
    text("service.name", "service_name"),
    text("service.namespace", "service_namespace"),
    text("service.version", "service_version"),
    text("service.instance.id", "service_instance_id"),
    text("deployment.environment.name", "deployment_environment_name"),
    text("host.name", "host_name"),
    text("k8s.namespace.name", "k8s_namespace_name"),
    text("k8s.pod.name", "k8s_pod_name"),
    text("k8s.deployment.name", "k8s_deployment_name"),
    text("k8s.node.name", "k8s_node_name"),
    text("cloud.region", "cloud_region"),
];

/// Promoted from spans and log records.
pub const RECORD: &[Promoted] = &[
    text("http.request.method", "http_request_method"),
    integer("http.response.status_code", "http_response_status_code"),
    text("http.route", "http_route"),
    text("url.path", "url_path"),
    text("url.full", "url_full"),
    text("server.address", "server_address"),
    integer("server.port", "server_port"),
    text("client.address", "client_address"),
    text("user_agent.original", "user_agent_original"),
    text("db.system.name", "db_system_name"),
    text("db.namespace", "db_namespace"),
    text("db.operation.name", "db_operation_name"),
    text("db.collection.name", "db_collection_name"),
    text("db.query.text", "db_query_text"),
    text("rpc.system", "rpc_system"),
    text("rpc.service", "rpc_service"),
    text("rpc.method", "rpc_method"),
    text("messaging.system", "messaging_system"),
    text("messaging.destination.name", "messaging_destination_name"),
    text("exception.type", "exception_type"),
    text("exception.message", "exception_message"),
    text("error.type", "error_type"),
    text("user.id", "user_id"),
    text("session.id", "session_id"),
];

/// Nothing is promoted from data points, scopes, events, links and exemplars.
pub const NONE: &[Promoted] = &[];

/// Position of `key` in `list`. Lists are short and keys differ in length: a scan beats hashing.
pub(crate) fn position(list: &[Promoted], key: &[u8]) -> Option<usize> {
    list.iter().position(|promoted| promoted.key.len() == key.len() && promoted.key.as_bytes() == key)
}

/// Positions are written as one character: `A`-`Z`, then `0`-`9`.
pub(crate) const POSITIONS: &[u8; 36] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_a_character() {
        for list in [RESOURCE, RECORD] {
            assert!(list.len() <= POSITIONS.len());
            for (at, promoted) in list.iter().enumerate() {
                assert_eq!(position(list, promoted.key.as_bytes()), Some(at), "{}", promoted.key);
                assert_eq!(promoted.column, promoted.key.replace('.', "_"));
            }
        }
    }
}
