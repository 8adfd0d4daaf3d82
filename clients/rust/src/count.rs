//! How many messages a frame has, before it is parsed: an empty message has two bytes, and takes a hundred times as much
//! when it is there.

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::limits::FRAME_MESSAGES;

/// `batch`, of a Frame.
const BATCH: u32 = 3;
/// `messages`, of a Batch.
const MESSAGES: u32 = 2;
/// Bytes of an empty message, with what stands before it.
const LEAST: usize = 2;

/// Why this frame should not be parsed.
pub(crate) fn check(frame: &[u8]) -> Result<(), String> {
    if frame.len() <= LEAST * FRAME_MESSAGES {
        return Ok(());
    }
    let mut count = 0;
    // Several batches would be read as one.
    let whole = each(frame, BATCH, &mut |batch| {
        each(batch, MESSAGES, &mut |_| {
            count += 1;
            Some(count <= FRAME_MESSAGES)
        })
    });
    match whole {
        Some(true) => Ok(()),
        Some(false) => Err(format!("the frame has more than {FRAME_MESSAGES} messages")),
        None => Err("the frame cannot be parsed".into()),
    }
}

/// Look at all fields with this number, until one says that it is enough (false). None: they cannot be parsed.
fn each(mut rest: &[u8], wanted: u32, look: &mut dyn FnMut(&[u8]) -> Option<bool>) -> Option<bool> {
    while !rest.is_empty() {
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        if number != wanted || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
            continue;
        }
        let size = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
        if !look(rest.get(..size)?)? {
            return Some(false);
        }
        rest.advance(size);
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(tag: &[u8], content: &[u8]) -> Vec<u8> {
        let mut bytes = tag.to_vec();
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        bytes.extend(content);
        bytes
    }

    #[test]
    fn there_are_no_more_messages_in_a_frame_than_may_be() {
        let frame = |message: &[u8], count| field(b"\x1a", &message.repeat(count));
        let long_tag = b"\x92\x00\x00"; // as good as 12 00
        for message in [b"\x12\x00".as_slice(), long_tag] {
            assert!(check(&frame(message, FRAME_MESSAGES)).is_ok());
            assert!(check(&frame(message, FRAME_MESSAGES + 1)).unwrap_err().contains("more than 4096 messages"));
        }
        let half = frame(b"\x12\x00", FRAME_MESSAGES / 2 + 1);
        assert!(check(&half.repeat(2)).is_err(), "two batches are one");
    }

    #[test]
    fn only_messages_count() {
        let text = field(b"\x32", &b"\x12\x00".repeat(2 * FRAME_MESSAGES));
        let others = [b"\x08\x01".repeat(FRAME_MESSAGES), field(b"\x12", &text)].concat();
        assert!(check(&field(b"\x1a", &others)).is_ok());
        assert!(check(&field(b"\x12", &b"\x12\x00".repeat(2 * FRAME_MESSAGES))).is_ok(), "of another kind");
    }

    #[test]
    fn what_is_no_frame_is_not_parsed() {
        let cut = &field(b"\x1a", &b"\x12\x00".repeat(FRAME_MESSAGES + 1))[..LEAST * FRAME_MESSAGES + 2];
        assert!(check(cut).unwrap_err().contains("cannot be parsed"));
        assert!(check(&vec![0xff; 3 * FRAME_MESSAGES]).is_err());
    }
}
