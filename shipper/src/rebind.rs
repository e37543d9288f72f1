//! `weir-shipper rebind`: a person says that the journal is lost to which batches went.
//!
//! What waits then goes to another journal under new epochs. What had arrived in the lost one, if it is not lost after
//! all, is doubled: a loss record with `reason = rebind` says so. The shipper must not run meanwhile: the spool's lock.

use weir_common::id::{hex, uuid_text};

use crate::metrics::Metrics;
use crate::spool::{Id, ONLY_AGGREGATOR, OutboxError, Spool, SpoolError, SpoolOptions};

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
    /// Which one is meant is not clear.
    #[error("the spool knows these aggregators: {known}; name the one whose journal is lost with --of")]
    Aggregator {
        /// Their names.
        known: String,
    },
    /// It could not be opened, for instance because the shipper runs.
    #[error("open the spool")]
    Spool(#[from] SpoolError),
    /// It could not be changed.
    #[error("change the spool's state")]
    Outbox(#[from] OutboxError),
}

/// Binds the spool of one aggregator to another journal.
pub fn rebind(spool: SpoolOptions, to: Option<Id>) -> Result<Rebound, RebindError> {
    rebind_of(spool, &[ONLY_AGGREGATOR.to_owned()], None, to)
}

/// Binds what belongs to the aggregator named `of` to another journal; it may be left out if there is one only.
pub fn rebind_of(
    spool: SpoolOptions,
    aggregators: &[String],
    of: Option<&str>,
    to: Option<Id>,
) -> Result<Rebound, RebindError> {
    let spool = Spool::open_for(spool, aggregators, Metrics::default())?;
    let mut known: Vec<String> = spool.outbox().aggregators().into_keys().collect();
    known.extend(aggregators.iter().filter(|name| !known.contains(name)).cloned().collect::<Vec<_>>());
    let name = match (of, &known[..]) {
        (None, [only]) => only.as_str(),
        (Some(of), known) if known.iter().any(|name| name == of) => of,
        _ => return Err(RebindError::Aggregator { known: known.join(", ") }),
    };
    let outbox = spool.outbox().of(name);
    let from = outbox.aggregators().get(name).copied();
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
