use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginTransactionRequest, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    Any, CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys,
    CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandGetXdbcTypeInfo, CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest,
    CommandStatementQuery, CommandStatementSubstraitPlan, CommandStatementUpdate, DoPutPreparedStatementResult,
    ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Criteria, Empty, FlightData,
    FlightDescriptor, FlightInfo, IpcMessage, Ticket,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use serde_json::Value;
use tonic::metadata::AsciiMetadataKey;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::cluster::Cluster;
use crate::fixtures::{python, run_script};
use crate::node::{Node, flight_number};
use crate::spans::{batch, send_batch};

const AUTH: [&str; 2] = [
    "auth.enabled=true",
    "auth.tenants=[{id=\"acme\",default_dataset=\"production\",api_keys=[{key=\"sk-acme\"}],datasets=[{id=\"staging\"}]},\
     {id=\"other\",default_dataset=\"main\",api_keys=[{key=\"sk-other\"}]}]",
];

/// Writes spans as a tenant; returns their ids and the position.
async fn write(node: &Node, tenant: &str, spans: usize) -> anyhow::Result<(Vec<String>, String)> {
    let (body, ids) = batch(spans);
    let export = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    let export = export.bearer_auth(format!("sk-{tenant}")).header("x-tenant-id", tenant).body(body);
    let answer = export.send().await?.error_for_status()?;
    let position = answer.headers().get("x-signaldb-position").context("a position")?.to_str()?.to_owned();
    Ok((ids, position))
}

/// A client behind a load balancer: each call goes to the next node.
struct Balanced {
    nodes: Vec<FlightServiceClient<Channel>>,
    next: usize,
    headers: Vec<(&'static str, String)>,
}

impl Balanced {
    async fn connect(nodes: &[&Node], headers: &[(&'static str, &str)]) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for node in nodes {
            clients.push(FlightServiceClient::new(Endpoint::from_shared(node.flight())?.connect().await?));
        }
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Ok(Self { nodes: clients, next: 0, headers })
    }

    fn node(&mut self) -> FlightServiceClient<Channel> {
        self.next += 1;
        self.nodes[self.next % self.nodes.len()].clone()
    }

    fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        for (name, value) in &self.headers {
            request.metadata_mut().insert(name.parse::<AsciiMetadataKey>()?, value.parse()?);
        }
        Ok(request)
    }

    async fn info(&mut self, command: &impl ProstMessageExt) -> anyhow::Result<Result<FlightInfo, Status>> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let request = self.request(descriptor)?;
        Ok(self.node().get_flight_info(request).await.map(tonic::Response::into_inner))
    }

    async fn stream(&mut self, ticket: Ticket) -> anyhow::Result<Result<FlightRecordBatchStream, Status>> {
        let request = self.request(ticket)?;
        let data = self.node().do_get(request).await;
        Ok(data.map(|data| FlightRecordBatchStream::new_from_flight_data(data.into_inner().map_err(Into::into))))
    }

    /// The rows of a command, and the schema that came with them.
    async fn rows(&mut self, command: &impl ProstMessageExt) -> anyhow::Result<(SchemaRef, Vec<RecordBatch>)> {
        let info = self.info(command).await??;
        let announced = info.clone().try_decode_schema()?;
        let mut stream = self.stream(ticket(&info)?).await??;
        let mut batches = Vec::new();
        while let Some(batch) = stream.try_next().await? {
            batches.push(batch);
        }
        let schema = stream.schema().cloned().context("a schema")?;
        ensure!(*schema == announced, "announced {announced}, sent {schema}");
        ensure!(info.endpoint.len() == 1, "one endpoint");
        Ok((schema, batches))
    }

    async fn action(&mut self, name: &str, body: impl Into<Bytes>) -> anyhow::Result<Result<Vec<Bytes>, Status>> {
        let request = self.request(Action::new(name, body))?;
        let answers = match self.node().do_action(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        Ok(answers.map_ok(|answer| answer.body).try_collect().await)
    }

    /// The first answer to data behind a command.
    async fn put(
        &mut self,
        command: &impl ProstMessageExt,
        batch: Option<RecordBatch>,
    ) -> anyhow::Result<Result<Bytes, Status>> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let messages = match batch {
            Some(batch) => {
                let encoder = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(descriptor));
                encoder.build(stream::iter([Ok(batch)])).try_collect::<Vec<_>>().await?
            }
            None => vec![FlightData::new().with_descriptor(descriptor)],
        };
        let request = self.request(stream::iter(messages))?;
        let mut answers = match self.node().do_put(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        Ok(answers.message().await.map(|answer| answer.unwrap_or_default().app_metadata))
    }
}

fn ticket(info: &FlightInfo) -> anyhow::Result<Ticket> {
    info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).context("a ticket")
}

fn statement(sql: &str) -> CommandStatementQuery {
    CommandStatementQuery { query: sql.to_owned(), transaction_id: None }
}

fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

/// A statement without values.
async fn prepare(client: &mut Balanced, query: &str) -> anyhow::Result<CommandPreparedStatementQuery> {
    let create = ActionCreatePreparedStatementRequest { query: query.to_owned(), transaction_id: None };
    let created = client.action("CreatePreparedStatement", create.as_any().encode_to_vec()).await??;
    let created = Any::decode(created.first().context("an answer")?.clone())?;
    let created: ActionCreatePreparedStatementResult = created.unpack()?.context("a result")?;
    Ok(CommandPreparedStatementQuery { prepared_statement_handle: created.prepared_statement_handle })
}

/// The statement with values.
async fn bind(
    client: &mut Balanced,
    unbound: &CommandPreparedStatementQuery,
    values: RecordBatch,
) -> anyhow::Result<CommandPreparedStatementQuery> {
    let bound = DoPutPreparedStatementResult::decode(client.put(unbound, Some(values)).await??)?;
    let handle = bound.prepared_statement_handle.context("the handle with what was bound")?;
    Ok(CommandPreparedStatementQuery { prepared_statement_handle: handle })
}

/// The code of an error that has to have a name, and its message.
fn refusal<T>(outcome: Result<T, Status>) -> (Code, String) {
    let Err(status) = outcome else { return (Code::Ok, String::new()) };
    assert!(status.metadata().contains_key("x-signaldb-error"), "{status:?} has no name");
    (status.code(), status.message().to_owned())
}

/// Scenario: a client logs in at one node of three with Basic credentials; then it prepares a statement, binds two rows of
/// parameters, asks for information, reads and closes, each at the next node. Another tenant brings the ticket and the handle.
/// Guarantees: every node takes the session, the handle and the ticket of every other; the other tenant is refused.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_may_go_to_another_node() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &AUTH).await?;
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    let (ids, _) = write(nodes[0], "acme", 3).await?;
    write(nodes[1], "other", 2).await?;

    let mut login = nodes[0].flight_client().await?;
    login.handshake("acme", "sk-acme").await?;
    let token = login.token().context("a token")?.clone();
    ensure!(!token.contains("sk-acme"), "the session does not show the key");
    let mut acme = Balanced::connect(&nodes, &[("authorization", &format!("Bearer {token}"))]).await?;
    let unbound = prepare(&mut acme, "SELECT count(*) FROM traces WHERE span_id = ?").await?;
    let (code, message) = refusal(acme.info(&unbound).await?);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("no values are bound"), "{message}");

    let schema = Arc::new(Schema::new(vec![Field::new("0", DataType::Utf8, true)]));
    let values = StringArray::from(vec![ids[0].as_str(), "0000000000000000", ids[2].as_str()]);
    let values = RecordBatch::try_new(schema, vec![Arc::new(values)])?;
    let bound = bind(&mut acme, &unbound, values).await?;
    for _ in 0..3 {
        let (_, rows) = acme.rows(&bound).await?;
        assert_eq!(numbers(&rows), [1, 0, 1]);
    }
    let (_, rows) = acme.rows(&statement("SELECT count(*) FROM traces")).await?;
    assert_eq!(numbers(&rows), [3]);

    let info = acme.info(&bound).await??;
    let headers = [("authorization", "Bearer sk-other"), ("x-tenant-id", "other")];
    let mut other = Balanced::connect(&nodes, &headers).await?;
    let stolen = other.stream(ticket(&info)?).await?.map(drop);
    assert_eq!(refusal(stolen).0, Code::PermissionDenied);
    assert_eq!(refusal(other.info(&bound).await?).0, Code::PermissionDenied);
    let (_, rows) = other.rows(&statement("SELECT count(*) FROM traces")).await?;
    assert_eq!(numbers(&rows), [2]);

    let close = ActionClosePreparedStatementRequest { prepared_statement_handle: bound.prepared_statement_handle };
    let closed = acme.action("ClosePreparedStatement", close.as_any().encode_to_vec()).await??;
    assert!(closed.is_empty());
    let mut forged = token.into_bytes();
    // Within the MAC.
    let at = forged.len() - 10;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    let forged = format!("Bearer {}", String::from_utf8(forged)?);
    let mut forger = Balanced::connect(&nodes, &[("authorization", &forged)]).await?;
    assert_eq!(refusal(forger.info(&statement("SELECT 1")).await?).0, Code::Unauthenticated);
    Ok(())
}

/// Scenario: tickets, commands, handles and parameters of random and of damaged bytes.
/// Guarantees: `INVALID_ARGUMENT` with a name, and the node goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_ticket_command_or_parameter_is_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut client = Balanced::connect(&[&node], &[]).await?;
    let good = ticket(&client.info(&statement("SELECT 1")).await??)?.ticket;
    let mut bad = vec![Bytes::new(), good.slice(..good.len() / 2), Bytes::from_static(&[0xff; 40])];
    for at in (0..good.len()).step_by(7) {
        let mut damaged = good.to_vec();
        damaged[at] ^= 0x55;
        bad.push(damaged.into());
    }
    let random = || uuid::Uuid::new_v4().as_bytes().to_vec();
    for _ in 0..50 {
        bad.push(random().into());
        let handle = TicketStatementQuery { statement_handle: random().into() };
        bad.push(handle.as_any().encode_to_vec().into());
    }
    for bytes in bad {
        let refused = client.stream(Ticket::new(bytes.clone())).await?.map(drop);
        assert_eq!(refusal(refused).0, Code::InvalidArgument, "the ticket {bytes:?}");
        let request = client.request(FlightDescriptor::new_cmd(bytes.clone()))?;
        let refused = client.node().get_flight_info(request).await;
        // A ticket is a message that exists, but no command.
        let code = refusal(refused).0;
        assert!(matches!(code, Code::InvalidArgument | Code::Unimplemented), "the command {bytes:?}: {code}");
        let broken = client.action("CreatePreparedStatement", bytes).await?;
        assert_eq!(refusal(broken).0, Code::InvalidArgument);
    }
    let handle = CommandPreparedStatementQuery { prepared_statement_handle: random().into() };
    assert_eq!(refusal(client.info(&handle).await?).0, Code::InvalidArgument);
    assert_eq!(refusal(client.put(&handle, None).await?).0, Code::InvalidArgument);
    let cancelled = client.action("CancelFlightInfo", vec![0xff_u8; 9]).await?;
    assert_eq!(refusal(cancelled).0, Code::InvalidArgument);
    for sql in ["SELEC 1", "SELECT nope FROM traces", "DROP TABLE traces", "SELECT $1 + ?", "SELECT 1; SELECT 2"] {
        assert_eq!(refusal(client.info(&statement(sql)).await?).0, Code::InvalidArgument, "{sql}");
    }
    client.headers.push(("x-signaldb-consistency", "sometimes".to_owned()));
    assert_eq!(refusal(client.info(&statement("SELECT 1")).await?).0, Code::InvalidArgument);
    assert_eq!(node.number("SELECT 1").await?, 1);
    Ok(())
}

/// Scenario: updates, ingestion, transactions, plans of Substrait and everything else that is not here.
/// Guarantees: `UNIMPLEMENTED` that names what was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_refused_by_name() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut client = Balanced::connect(&[&node], &[]).await?;
    let check = |outcome: Result<(), Status>, name: &str| {
        let (code, message) = refusal(outcome);
        assert_eq!(code, Code::Unimplemented, "{name}: {message}");
        assert!(message.contains(name), "{message} does not name {name}");
    };
    let update = CommandStatementUpdate { query: "DELETE FROM traces".to_owned(), transaction_id: None };
    check(client.put(&update, None).await?.map(drop), "CommandStatementUpdate");
    let update = CommandPreparedStatementUpdate { prepared_statement_handle: Bytes::new() };
    check(client.put(&update, None).await?.map(drop), "CommandPreparedStatementUpdate");
    let ingest = CommandStatementIngest { table: "traces".to_owned(), ..CommandStatementIngest::default() };
    check(client.put(&ingest, None).await?.map(drop), "CommandStatementIngest");
    let substrait = CommandStatementSubstraitPlan::default();
    check(client.put(&substrait, None).await?.map(drop), "CommandStatementSubstraitPlan");
    check(client.info(&substrait).await?.map(drop), "CommandStatementSubstraitPlan");
    let begin = ActionBeginTransactionRequest {}.as_any().encode_to_vec();
    check(client.action("BeginTransaction", begin).await?.map(drop), "BeginTransaction");
    let begin = ActionBeginSavepointRequest::default().as_any().encode_to_vec();
    check(client.action("BeginSavepoint", begin).await?.map(drop), "BeginSavepoint");
    for name in ["RenewFlightEndpoint", "CloseSession", "SetSessionOptions", "Nonsense"] {
        check(client.action(name, Bytes::new()).await?.map(drop), name);
    }
    let in_transaction =
        CommandStatementQuery { transaction_id: Some(Bytes::from_static(b"1")), ..statement("SELECT 1") };
    check(client.info(&in_transaction).await?.map(drop), "transaction");
    let request = client.request(Criteria::default())?;
    check(client.node().list_flights(request).await.map(drop), "ListFlights");
    let request = client.request(stream::iter([FlightData::new()]))?;
    check(client.node().do_exchange(request).await.map(drop), "DoExchange");
    Ok(())
}

/// Scenario: every metadata command, its schema by `GetSchema` too, filters, the first poll, the list of actions.
/// Guarantees: information, schema and rows agree; there are no keys, with the columns of the protocol; filters hold.
#[tokio::test(flavor = "multi_thread")]
async fn every_metadata_command_has_its_schema() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut client = Balanced::connect(&[&node], &[]).await?;
    let table = || "traces".to_owned();
    let keys = [
        client.rows(&CommandGetPrimaryKeys { catalog: None, db_schema: None, table: table() }).await?,
        client.rows(&CommandGetExportedKeys { catalog: None, db_schema: None, table: table() }).await?,
        client.rows(&CommandGetImportedKeys { catalog: None, db_schema: None, table: table() }).await?,
        client.rows(&CommandGetCrossReference { pk_table: table(), fk_table: table(), ..Default::default() }).await?,
    ];
    for ((schema, rows), columns) in keys.iter().zip([6, 13, 13, 13]) {
        assert_eq!((schema.fields().len(), rows.iter().map(RecordBatch::num_rows).sum::<usize>()), (columns, 0));
    }
    let count = |rows: &[RecordBatch]| rows.iter().map(RecordBatch::num_rows).sum::<usize>();
    assert_eq!(count(&client.rows(&CommandGetCatalogs {}).await?.1), 1);
    assert_eq!(count(&client.rows(&CommandGetDbSchemas::default()).await?.1), 2);
    assert_eq!(count(&client.rows(&CommandGetTableTypes {}).await?.1), 2);
    assert_eq!(count(&client.rows(&CommandGetXdbcTypeInfo { data_type: Some(12) }).await?.1), 1);
    assert_eq!(count(&client.rows(&CommandGetSqlInfo { info: vec![0, 8, 9999] }).await?.1), 2);
    let nowhere = CommandGetDbSchemas { catalog: Some("nowhere".to_owned()), db_schema_filter_pattern: None };
    assert_eq!(count(&client.rows(&nowhere).await?.1), 0);
    for include_schema in [false, true] {
        let command = CommandGetTables {
            db_schema_filter_pattern: Some("defau%".to_owned()),
            table_name_filter_pattern: Some("metrics\\_%".to_owned()),
            table_types: vec!["BASE TABLE".to_owned(), "table".to_owned()],
            include_schema,
            ..CommandGetTables::default()
        };
        let (schema, rows) = client.rows(&command).await?;
        assert_eq!((schema.fields().len(), count(&rows)), (4 + usize::from(include_schema), 5));
    }
    let system =
        CommandGetTables { table_types: vec!["SYSTEM TABLE".to_owned()], include_schema: true, ..Default::default() };
    assert!(count(&client.rows(&system).await?.1) >= 6);

    let command = FlightDescriptor::new_cmd(statement("SELECT * FROM traces").as_any().encode_to_vec());
    let request = client.request(command.clone())?;
    let described = client.node().get_schema(request).await?.into_inner();
    let described = Schema::try_from(described)?;
    assert_eq!(described, *client.rows(&statement("SELECT * FROM traces")).await?.0);
    let request = client.request(command)?;
    let polled = client.node().poll_flight_info(request).await?.into_inner();
    assert!(polled.flight_descriptor.is_none() && polled.info.is_some_and(|info| info.endpoint.len() == 1));
    let request = client.request(Empty {})?;
    let actions: Vec<_> = client.node().list_actions(request).await?.into_inner().try_collect().await?;
    let actions: Vec<&str> = actions.iter().map(|action| action.r#type.as_str()).collect();
    assert_eq!(actions, ["CreatePreparedStatement", "ClosePreparedStatement", "CancelQuery", "CancelFlightInfo"]);
    Ok(())
}

/// Rows until it is stopped.
const ENDLESS: &str = "SELECT a.value FROM generate_series(1, 1000000) a CROSS JOIN generate_series(1, 1000000) b";

/// What cancelling a result answers, by `CancelQuery` or by `CancelFlightInfo`.
async fn cancel(
    client: &mut Balanced,
    info: &FlightInfo,
    by_query: bool,
) -> anyhow::Result<Result<CancelStatus, Status>> {
    let (name, body) = match by_query {
        false => ("CancelFlightInfo", CancelFlightInfoRequest::new(info.clone()).encode_to_vec()),
        true => {
            let request = ActionCancelQueryRequest { info: info.encode_to_vec().into() };
            ("CancelQuery", request.as_any().encode_to_vec())
        }
    };
    let answers = match client.action(name, body).await? {
        Ok(answers) => answers,
        Err(status) => return Ok(Err(status)),
    };
    let answer = answers.into_iter().next().context("an answer")?;
    let status = match by_query {
        false => CancelFlightInfoResult::decode(answer)?.status,
        true => {
            let answer: Option<ActionCancelQueryResult> = Any::decode(answer)?.unpack()?;
            answer.context("a result")?.result
        }
    };
    Ok(Ok(CancelStatus::try_from(status)?))
}

/// How a result ends that must not pass for a whole one.
async fn failure(mut rows: FlightRecordBatchStream) -> anyhow::Result<Status> {
    loop {
        match rows.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("the stream ended as if it were whole"),
            Err(error) => return Ok(Status::from(error)),
        }
    }
}

/// Scenario: a result without end is read; another tenant cancels it, then its own client does.
/// Guarantees: only its own client ends it, and the stream says that it was cancelled; what is not read is not cancellable.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_cancelled_by_whoever_reads_it() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    cancel_at(&node, &node).await
}

/// Scenario: the same, where every cancellation goes to another node than the one that sends the rows; then a node dies.
/// Guarantees: the same; and while a node is silent, nobody says that a result is not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_cancelled_through_any_node() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    for at in [1, 2] {
        cancel_at(&cluster.nodes[0], &cluster.nodes[at]).await?;
    }
    let mut client = Balanced::connect(&[&cluster.nodes[0]], &[]).await?;
    let info = client.info(&statement(ENDLESS)).await??;
    cluster.nodes[2].kill()?;
    let (code, message) = refusal(cancel(&mut client, &info, false).await?);
    assert_eq!(code, Code::Unavailable);
    assert!(message.contains("node 3"), "{message}");
    Ok(())
}

async fn cancel_at(reads: &Node, cancels: &Node) -> anyhow::Result<()> {
    let mut reader = Balanced::connect(&[reads], &[]).await?;
    let mut client = Balanced::connect(&[cancels], &[]).await?;
    let mut other = Balanced::connect(&[cancels], &[("x-tenant-id", "other")]).await?;
    for by_query in [false, true] {
        let info = reader.info(&statement(ENDLESS)).await??;
        let before = cancel(&mut client, &info, by_query).await??;
        assert_eq!(before, CancelStatus::NotCancellable, "before it is read");
        let mut rows = reader.stream(ticket(&info)?).await??;
        assert!(rows.next().await.is_some_and(|batch| batch.is_ok()));
        let by_another = cancel(&mut other, &info, by_query).await??;
        assert_eq!(by_another, CancelStatus::NotCancellable, "another tenant");
        assert_eq!(cancel(&mut client, &info, by_query).await??, CancelStatus::Cancelling);
        let error = failure(rows).await?;
        assert_eq!(error.code(), Code::Cancelled, "{error}");
    }
    Ok(())
}

/// Scenario: a thousand rows are bound to a statement, each run of which takes a moment, and all of them longer than the
/// client allows.
/// Guarantees: they are one query in the list, which ends at its deadline.
#[tokio::test(flavor = "multi_thread")]
async fn all_rows_of_parameters_share_one_deadline() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut client = Balanced::connect(&[&node], &[("x-signaldb-deadline", "3s")]).await?;
    let sql = "SELECT sum(value % ?) AS total FROM generate_series(1, 1000000)";
    let divisors: ArrayRef = Arc::new(Int64Array::from_iter_values(2..1002));
    let unbound = prepare(&mut client, sql).await?;
    let bound = bind(&mut client, &unbound, RecordBatch::try_from_iter([("0", divisors)])?).await?;
    let info = client.info(&bound).await??;
    let mut rows = client.stream(ticket(&info)?).await??;
    for _ in 0..2 {
        rows.try_next().await?.context("the row of a run")?;
    }
    let body: Value = node.http.get(node.url("/api/v1/queries")).send().await?.json().await?;
    let queries: Vec<&Value> =
        body["queries"].as_array().into_iter().flatten().filter(|query| query["query"] == sql).collect();
    assert!(queries.len() == 1 && queries[0]["rows"].as_u64() >= Some(2), "{body}");
    let error = failure(rows).await?;
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    Ok(())
}

/// Scenario: views, dictionaries and nested types are selected, as they are and flattened.
/// Guarantees: no view leaves the node; dictionaries and nested types do as they are; flat results have neither.
#[tokio::test(flavor = "multi_thread")]
async fn types_leave_the_node_as_clients_read_them() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let sql = "SELECT arrow_cast('a', 'Utf8View') AS view, arrow_cast('b', 'Dictionary(Int32, Utf8)') AS dictionary,
        make_array(arrow_cast('c', 'Utf8View')) AS list, arrow_cast('d', 'LargeUtf8') AS large";
    let mut client = Balanced::connect(&[&node], &[]).await?;
    let (schema, rows) = client.rows(&statement(sql)).await?;
    let kinds: Vec<&DataType> = schema.fields().iter().map(|field| field.data_type()).collect();
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    assert_eq!((kinds[0], kinds[1], kinds[3]), (&DataType::Utf8, &dictionary, &DataType::Utf8));
    assert!(matches!(kinds[2], DataType::List(element) if *element.data_type() == DataType::Utf8), "{schema}");
    assert_eq!(rows.first().context("a row")?.column(0).as_string::<i32>().value(0), "a");

    client.headers.push(("x-signaldb-flatten", "true".to_owned()));
    let (schema, rows) = client.rows(&statement(sql)).await?;
    assert!(schema.fields().iter().all(|field| *field.data_type() == DataType::Utf8), "{schema}");
    let row = rows.first().context("a row")?;
    let texts: Vec<&str> = row.columns().iter().map(|column| column.as_string::<i32>().value(0)).collect();
    assert_eq!(texts, ["a", "b", "[\"c\"]", "d"]);
    let (schema, _) = client.rows(&statement("SELECT * FROM traces")).await?;
    assert!(schema.fields().iter().all(|field| !field.data_type().is_nested()), "{schema}");
    Ok(())
}

/// Scenario: spans in memory, then in a file. Their texts are selected, described and compared with a parameter.
/// Guarantees: a column of texts is `Utf8` in rows, information, lists of tables and prepared statements.
#[tokio::test(flavor = "multi_thread")]
async fn stored_texts_are_plain_texts_to_clients() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut client = Balanced::connect(&[&node], &[]).await?;
    send_batch(&node.http, &[node.otlp_http("/v1/traces")], 3).await?;
    for _ in 0..2 {
        let sql = "SELECT service_name, attributes['http.route'] AS route, CAST(kind AS VARCHAR) AS kind FROM traces";
        let (schema, rows) = client.rows(&statement(sql)).await?;
        assert!(schema.fields().iter().all(|field| *field.data_type() == DataType::Utf8), "{schema}");
        let all = |column: usize, text: &str| {
            rows.iter().all(|batch| batch.column(column).as_string::<i32>().iter().all(|found| found == Some(text)))
        };
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
        assert!(all(0, "shop") && all(1, "/checkout"), "{rows:?}");
        node.flush().await?;
    }
    let tables = CommandGetTables {
        table_name_filter_pattern: Some("traces".to_owned()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let tables = client.rows(&tables).await?.1;
    let listed = tables.first().context("a table")?.column(4).as_binary::<i32>().value(0).to_vec();
    let create = ActionCreatePreparedStatementRequest {
        query: "SELECT name FROM traces WHERE name = $1".to_owned(),
        transaction_id: None,
    };
    let created = client.action("CreatePreparedStatement", create.as_any().encode_to_vec()).await??;
    let created = Any::decode(created.first().context("an answer")?.clone())?;
    let created: ActionCreatePreparedStatementResult = created.unpack()?.context("a result")?;
    for (message, column) in
        [(Bytes::from(listed), "name"), (created.dataset_schema, "name"), (created.parameter_schema, "$1")]
    {
        let schema = Schema::try_from(IpcMessage(message))?;
        assert_eq!(schema.field_with_name(column)?.data_type(), &DataType::Utf8, "{schema}");
    }
    Ok(())
}

/// Scenario: ADBC makes every call that it has (`cluster-tests/python/flight_sql.py`): at one node, then at each of three,
/// where what one node prepared for others to read is read at the next.
/// Guarantees: each call answers what it should, and everything is where anybody wrote it.
#[tokio::test(flavor = "multi_thread")]
async fn adbc_makes_every_call_at_one_node() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &AUTH).await?;
    adbc(&python, &[&node]).await
}

/// See [`adbc_makes_every_call_at_one_node`].
#[tokio::test(flavor = "multi_thread")]
async fn adbc_makes_every_call_through_another_node_of_three() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &AUTH).await?;
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    adbc(&python, &nodes).await
}

async fn adbc(python: &Path, nodes: &[&Node]) -> anyhow::Result<()> {
    let writer = nodes.first().context("a node")?;
    let (ids, position) = write(writer, "acme", 3).await?;
    write(writer, "other", 2).await?;
    let flights: Vec<String> = nodes.iter().map(|node| node.flight().replace("http://", "grpc://")).collect();
    let https: Vec<String> = nodes.iter().map(|node| node.url("")).collect();
    let environment = [
        ("SIGNALDB_FLIGHT", flights.join(",")),
        ("SIGNALDB_HTTP", https.join(",")),
        ("SPANS", ids.join(",")),
        ("POSITION", position),
    ];
    run_script(python, "flight_sql.py", &environment, "every call answered").map(drop)
}

/// Scenario: a handshake without authentication, with a tenant and without.
/// Guarantees: later calls are of that tenant.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_chooses_the_tenant_while_authentication_is_off() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let (body, _) = batch(2);
    let export = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    export.header("x-tenant-id", "acme").body(body).send().await?.error_for_status()?;
    let mut acme: FlightSqlServiceClient<Channel> = node.flight_client().await?;
    acme.handshake("acme", "whatever").await?;
    assert_eq!(flight_number(&mut acme, "SELECT count(*) FROM traces").await?, 2);
    let mut default = node.flight_client().await?;
    default.handshake("default", "").await?;
    assert_eq!(flight_number(&mut default, "SELECT count(*) FROM traces").await?, 0);
    Ok(())
}
