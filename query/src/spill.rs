//! Where queries put what their memory has no room for. Each file goes with the query that wrote it; after a crash they are
//! left over.

use std::path::Path;

use crate::error::{QueryError, QueryErrorKind};

/// Makes the directory, without anything in it.
///
/// # Errors
/// When it cannot be made, or emptied.
pub(crate) fn empty(dir: &Path) -> Result<(), QueryError> {
    let failed = |error: std::io::Error| {
        QueryError::new(QueryErrorKind::Internal, format!("the spill directory {}: {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let removed = match entry.file_type().map_err(failed)?.is_dir() {
            true => std::fs::remove_dir_all(entry.path()),
            false => std::fs::remove_file(entry.path()),
        };
        removed.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_over_goes() {
        let dir = std::env::temp_dir().join(format!("signaldb-spill-{}", uuid::Uuid::new_v4()));
        empty(&dir).expect("is made");
        std::fs::create_dir(dir.join("datafusion-abc")).expect("a directory of another start");
        std::fs::write(dir.join("datafusion-abc/file"), "x").expect("a spilled file");
        std::fs::write(dir.join("file"), "x").expect("a file");
        empty(&dir).expect("is emptied");
        assert_eq!(std::fs::read_dir(&dir).expect("is there").count(), 0);
        std::fs::remove_dir(&dir).expect("is empty");
    }
}
