//! Tempo's API, for Grafana and other clients of it: at the root of port 3000 and under `/tempo`, and as gRPC service
//! `tempopb.StreamingQuerier` on the same port.
//!
//! A request becomes one of a few questions (`ask`), whoever sent it; the answer is a message of `proto/src/tempo.rs`,
//! which is written as protobuf or as JSON (`json`), a trace part by part (`trace`). Errors are plain text, as clients of
//! Tempo show them.

mod answer;
mod ask;
mod grpc;
mod http;
mod json;
mod trace;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use ask::trace_id;
pub(crate) use http::routes;
