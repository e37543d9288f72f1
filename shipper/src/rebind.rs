//! `weir-shipper rebind`: a person says that the journal is lost to which batches went.
//!
//! What waits then goes to another journal under new epochs. What had arrived in the lost one, if it is not lost after
//! all, is doubled: a loss record with `reason = rebind` says so. The shipper must not run meanwhile: the spool's lock.

use weir_common::id::{hex, uuid_text};

use crate::metrics::Metrics;
use crate::spool::{Id, OutboxError, Spool, SpoolError, SpoolOptions};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebound {
    /// The journal before.
    pub from: Option<Id>,
    /// The journal now; `None` is the next one that is met.
    pub to: Option<Id>,
    /// Events that wait.
    pub events: u64,
}

impl std::fmt::Display for Rebound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |id: Option<Id>, none: &str| id.map_or_else(|| none.to_owned(), |id| uuid_text(&id));
        let from = name(self.from, "no journal");
        let to = name(self.to, "the next journal that it meets");
        write!(f, "the spool was bound to {from}, now to {to}; {} events wait to be sent", self.events)
    }
}

/// The spool could not be bound anew; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RebindError {
    /// Not a journal's id.
    #[error("{text} is not the id of a journal: 32 hexadecimal digits, with or without dashes")]
    Journal {
        /// What was given.
        text: String,
    },
    /// It could not be opened, for instance because the shipper runs.
    #[error("open the spool")]
    Spool(#[from] SpoolError),
    /// It could not be changed.
    #[error("change the spool's state")]
    Outbox(#[from] OutboxError),
}

/// Binds a spool to another journal.
pub fn rebind(spool: SpoolOptions, to: Option<Id>) -> Result<Rebound, RebindError> {
    let spool = Spool::open(spool, Metrics::default())?;
    let outbox = spool.outbox();
    let from = outbox.head().journal;
    outbox.rebind(to)?;
    let events = outbox.waiting().borrow().records.events;
    tracing::info!(from = from.map(|id| hex(&id)), to = to.map(|id| hex(&id)), events, "spool bound anew");
    Ok(Rebound { from, to, events })
}

/// The id of a journal, as it is logged.
pub fn journal_id(text: &str) -> Result<Id, RebindError> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let valid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = valid.then(|| u128::from_str_radix(&digits, 16).ok()).flatten();
    id.map(u128::to_be_bytes).ok_or_else(|| RebindError::Journal { text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_in_both_forms() {
        let id = [0xab; 16];
        assert_eq!(journal_id(&uuid_text(&id)).unwrap(), id);
        assert_eq!(journal_id(&hex(&id)).unwrap(), id);
        assert!(journal_id("journal").is_err());
    }
}
