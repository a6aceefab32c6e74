//! Foreign DNS messages as bytes. Answers of upstream servers are relayed as they are (with the client's id,
//! and times that count down), so that record types we know nothing of survive.

/// Length of a message's header.
const HEADER: usize = 12;
const FLAG_TRUNCATED: u8 = 0x02;
/// The EDNS pseudo-record, whose TTL field is no time.
const TYPE_OPT: u16 = 41;
const TYPE_SOA: u16 = 6;
const RCODE_NXDOMAIN: u8 = 3;

/// The first question of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// The name as it is on the wire.
    pub name: &'a [u8],
    /// Type and class.
    pub kind: &'a [u8],
}

/// Reads the first question. Its name is never compressed: nothing is before it.
pub(crate) fn question(message: &[u8]) -> Option<Question<'_>> {
    if u16_at(message, 4)? == 0 {
        return None;
    }
    let end = skip_name(message, HEADER)?;
    let name = message.get(HEADER..end)?;
    // A pointer cannot be right here: nothing is before it.
    (name.last() == Some(&0)).then_some(())?;
    Some(Question {
        name,
        kind: message.get(end..end + 4)?,
    })
}

/// The message's id.
pub(crate) fn id(message: &[u8]) -> Option<u16> {
    u16_at(message, 0)
}

/// Writes the message's id.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

/// The response code in the header.
pub(crate) fn rcode(message: &[u8]) -> Option<u8> {
    message.get(3).map(|b| b & 0x0f)
}

/// Whether the message was cut.
pub(crate) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|b| b & FLAG_TRUNCATED != 0)
}

/// Whether `answer` belongs to `query`: it is a response to the same question.
pub(crate) fn answers(answer: &[u8], query: &[u8]) -> bool {
    let is_response = answer.get(2).is_some_and(|b| b & 0x80 != 0);
    let same = match (question(answer), question(query)) {
        (Some(a), Some(q)) => a.name.eq_ignore_ascii_case(q.name) && a.kind == q.kind,
        _ => false,
    };
    is_response && id(answer) == id(query) && same
}

/// Copies the question's spelling of the name: clients compare it exactly.
pub(crate) fn copy_spelling(answer: &mut [u8], query: &[u8]) {
    if let Some(question) = question(query)
        && let Some(target) = answer.get_mut(HEADER..HEADER + question.name.len())
        && target.eq_ignore_ascii_case(question.name)
    {
        target.copy_from_slice(question.name);
    }
}

/// Header and question alone, marked as cut: the client asks again over TCP.
pub(crate) fn truncate(message: &[u8]) -> Vec<u8> {
    let Some(end) = skip_name(message, HEADER)
        .map(|e| e + 4)
        .filter(|e| *e <= message.len())
    else {
        return Vec::new();
    };
    let mut cut = message[..end].to_vec();
    cut[2] |= FLAG_TRUNCATED;
    cut[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    cut
}

/// How long an answer may be remembered, in seconds: the shortest time of its records, or what its SOA says
/// of denials. `None` if it cannot be read or must not be remembered.
pub(crate) fn lifetime(message: &[u8]) -> Option<u32> {
    let mut shortest = None;
    let mut denial = None;
    walk(message, |record| {
        if record.kind == TYPE_SOA && record.section == 1 {
            let minimum = message.get(record.data.end.checked_sub(4)?..record.data.end)?;
            denial = Some(u32::from_be_bytes(minimum.try_into().ok()?).min(record.ttl));
        }
        shortest = Some(shortest.unwrap_or(u32::MAX).min(record.ttl));
        Some(())
    })?;
    let answers = u16_at(message, 6)?;
    match (rcode(message)?, answers) {
        (0, 1..) => shortest,
        (0 | RCODE_NXDOMAIN, _) => denial,
        _ => None,
    }
}

/// Lets all times count down by `seconds`.
pub(crate) fn age(message: &mut [u8], seconds: u32) {
    let mut times = Vec::new();
    let read = walk(message, |record| {
        times.push((record.ttl_at, record.ttl.saturating_sub(seconds)));
        Some(())
    });
    if read.is_some() {
        for (at, ttl) in times {
            message[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
    }
}

struct RecordAt {
    kind: u16,
    /// 0 answers, 1 authorities, 2 additionals.
    section: usize,
    ttl: u32,
    ttl_at: usize,
    data: std::ops::Range<usize>,
}

/// Visits all records but EDNS; `None` if the message is malformed.
fn walk(message: &[u8], mut visit: impl FnMut(&RecordAt) -> Option<()>) -> Option<()> {
    let mut at = HEADER;
    for _ in 0..u16_at(message, 4)? {
        at = skip_name(message, at)? + 4;
    }
    for section in 0..3 {
        for _ in 0..u16_at(message, 6 + 2 * section)? {
            at = skip_name(message, at)?;
            let kind = u16_at(message, at)?;
            let ttl = u32::from_be_bytes(message.get(at + 4..at + 8)?.try_into().ok()?);
            let length = usize::from(u16_at(message, at + 8)?);
            let data = at + 10..at + 10 + length;
            message.get(data.clone())?;
            if kind != TYPE_OPT {
                visit(&RecordAt {
                    kind,
                    section,
                    ttl,
                    ttl_at: at + 4,
                    data: data.clone(),
                })?;
            }
            at = data.end;
        }
    }
    Some(())
}

/// The position behind a name.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(length),
            // A pointer ends a name.
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    message
        .get(at..at + 2)
        .map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// The query's EDNS flags and version: what of EDNS may change an answer. Empty without EDNS.
pub(crate) fn edns(message: &[u8]) -> &[u8] {
    let mut at = HEADER;
    let mut look = || {
        for _ in 0..u16_at(message, 4)? {
            at = skip_name(message, at)? + 4;
        }
        let records: u32 = (0..3)
            .map(|s| u16_at(message, 6 + 2 * s).map_or(0, u32::from))
            .sum();
        for _ in 0..records {
            at = skip_name(message, at)?;
            if u16_at(message, at)? == TYPE_OPT {
                return message.get(at + 4..at + 8);
            }
            at += 10 + usize::from(u16_at(message, at + 8)?);
        }
        None
    };
    look().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn message(kind: MessageType) -> Message {
        let mut m = Message::new(7, kind, OpCode::Query);
        m.add_query(Query::query(name("Example.com."), RecordType::A));
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true);
        m.set_edns(edns);
        m
    }

    fn answer() -> Vec<u8> {
        let mut m = message(MessageType::Response);
        for (ttl, last) in [(20, 1), (60, 2)] {
            let data = RData::A(A::new(192, 0, 2, last));
            m.add_answer(Record::from_rdata(name("example.com."), ttl, data));
        }
        m.to_vec().unwrap()
    }

    #[test]
    fn times_count_down_and_edns_flags_stay() {
        let mut bytes = answer();
        assert_eq!(lifetime(&bytes), Some(20));
        age(&mut bytes, 25);
        let m = Message::from_vec(&bytes).unwrap();
        assert_eq!(m.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [0, 35]);
        assert!(m.edns.unwrap().flags().dnssec_ok);
    }

    #[test]
    fn a_denial_lives_as_long_as_its_soa_says() {
        let mut m = message(MessageType::Response);
        m.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(lifetime(&m.to_vec().unwrap()), None);
        let soa = SOA::new(name("a."), name("b."), 1, 2, 3, 4, 9);
        m.add_authority(Record::from_rdata(name("com."), 900, RData::SOA(soa)));
        assert_eq!(lifetime(&m.to_vec().unwrap()), Some(9));
        m.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(lifetime(&m.to_vec().unwrap()), None);
    }

    #[test]
    fn answers_are_matched_by_id_and_question() {
        let query = message(MessageType::Query).to_vec().unwrap();
        let mut bytes = answer();
        assert!(answers(&bytes, &query));
        assert!(!answers(&query, &query), "a query is no answer");
        set_id(&mut bytes, 8);
        assert!(!answers(&bytes, &query));
    }

    #[test]
    fn a_cut_message_keeps_its_question() {
        let cut = Message::from_vec(&truncate(&answer())).unwrap();
        assert!(cut.metadata.truncation);
        assert_eq!((cut.queries.len(), cut.answers.len()), (1, 0));
    }

    #[test]
    fn cut_or_random_bytes_are_refused_quietly() {
        let whole = answer();
        for end in 0..whole.len() {
            let mut part = whole[..end].to_vec();
            let _ = (
                lifetime(&part),
                question(&part).is_some(),
                edns(&part).len(),
                truncate(&part).len(),
            );
            age(&mut part, 1);
        }
        for byte in 0..=255u8 {
            let mut noise = vec![byte; 64];
            let _ = (
                lifetime(&noise),
                question(&noise).is_some(),
                edns(&noise).len(),
                truncate(&noise).len(),
            );
            age(&mut noise, 1);
        }
    }
}
