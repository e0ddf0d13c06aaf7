//! The promise about tickets and handles (`crate::fuzzing`).

use arrow_flight::Ticket;
use signaldb_catalog::Identity;
use signaldb_model::{DatasetId, TenantId};

use super::statement::{Statement, sealed};
use super::statement_of;
use crate::error::Kind;

/// A ticket or handle holds a statement, which is then written as it reads, or is a 400; somebody else's is a 403. That is so
/// too for a message of any bytes behind the right checksum. What is bound to a statement is not looked into here: what
/// makes Arrow's decoder panic is caught where it is read (`bind.rs`), and libFuzzer would not let it be.
pub fn ticket(bytes: &[u8]) {
    let caller = Identity {
        tenant: TenantId::new("acme").expect("a valid name"),
        dataset: DatasetId::new("production").expect("a valid name"),
    };
    let ticket = statement_of(&Ticket::new(bytes.to_vec()));
    for read in [ticket, Statement::from_bytes(bytes), Statement::from_bytes(&sealed(bytes))] {
        match read {
            Ok(statement) => {
                let again = Statement::from_bytes(&statement.to_bytes()).expect("what was written is read");
                assert_eq!(again, statement);
                if let Err(error) = statement.identity(caller.clone(), |_| false) {
                    assert_eq!(error.kind, Kind::Forbidden);
                }
            }
            Err(error) => assert_eq!(error.kind, Kind::Invalid),
        }
    }
}
