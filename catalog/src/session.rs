//! Session tokens: what a login answers, so that a client does not send its API key with every call.
//!
//! | bytes | |
//! |---|---|
//! | 8 | until when it holds: seconds since 1970, big endian |
//! | 8 | which key it stands for: a digest of the key's digest |
//! | 32 | HMAC-SHA256 of both, keyed with the cluster's secret and the key's digest |
//!
//! Nobody keeps a session: every node that knows the same keys and the same secret accepts the token, and it ends with
//! its key at the latest. Who reads the digests from the database cannot make one without the secret, which the nodes agreed
//! on when they founded the cluster (`raft/src/node/secret.rs`), beside what `cluster.secret` says.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// Length of a token.
pub const SESSION_TOKEN_BYTES: usize = 48;
const KEY_ID_AT: usize = 8;
const MAC_AT: usize = 16;

pub(crate) type KeyId = [u8; MAC_AT - KEY_ID_AT];

/// How tokens name the key with this digest.
pub(crate) fn key_id(digest: &[u8; 32]) -> KeyId {
    let hash = Sha256::new().chain_update(b"signaldb session key").chain_update(digest).finalize();
    let mut id = KeyId::default();
    id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    id
}

/// A token that holds until `until`, in seconds since 1970.
pub(crate) fn seal(digest: &[u8; 32], secret: &[u8], until: u64) -> [u8; SESSION_TOKEN_BYTES] {
    let mut token = [0; SESSION_TOKEN_BYTES];
    token[..KEY_ID_AT].copy_from_slice(&until.to_be_bytes());
    token[KEY_ID_AT..MAC_AT].copy_from_slice(&key_id(digest));
    let mac = mac(digest, secret, &token[..MAC_AT]).finalize().into_bytes();
    token[MAC_AT..].copy_from_slice(&mac);
    token
}

/// What a token claims; nothing of it is checked yet.
pub(crate) struct Claims<'a> {
    token: &'a [u8],
    pub(crate) key_id: KeyId,
    pub(crate) until: u64,
}

impl<'a> Claims<'a> {
    /// `None` when that is no token.
    pub(crate) fn read(token: &'a [u8]) -> Option<Self> {
        if token.len() != SESSION_TOKEN_BYTES {
            return None;
        }
        let until = u64::from_be_bytes(token.get(..KEY_ID_AT)?.try_into().ok()?);
        let key_id = token.get(KEY_ID_AT..MAC_AT)?.try_into().ok()?;
        Some(Self { token, key_id, until })
    }

    /// Whether it was sealed with this key and secret; in constant time.
    pub(crate) fn holds(&self, digest: &[u8; 32], secret: &[u8]) -> bool {
        let (claims, tag) = self.token.split_at(MAC_AT);
        mac(digest, secret, claims).verify_slice(tag).is_ok()
    }
}

fn mac(digest: &[u8; 32], secret: &[u8], claims: &[u8]) -> Hmac<Sha256> {
    // The digest's length is fixed, so no other secret gives the same key.
    let key = [secret, digest.as_slice()].concat();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length");
    mac.update(b"signaldb session 2");
    mac.update(claims);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: [u8; 32] = [7; 32];

    #[test]
    fn a_token_holds_for_its_key_and_secret_alone() {
        let token = seal(&DIGEST, b"secret", 1_700_000_000);
        let claims = Claims::read(&token).expect("a token");
        assert_eq!((claims.until, claims.key_id), (1_700_000_000, key_id(&DIGEST)));
        assert!(claims.holds(&DIGEST, b"secret"));
        assert!(!claims.holds(&DIGEST, b"another"));
        assert!(!claims.holds(&[8; 32], b"secret"));
    }

    #[test]
    fn no_byte_of_a_token_can_be_changed() {
        let token = seal(&DIGEST, b"secret", 1_700_000_000);
        for at in 0..token.len() {
            let mut changed = token;
            changed[at] ^= 1;
            let claims = Claims::read(&changed).expect("still as long");
            assert!(!claims.holds(&DIGEST, b"secret") || claims.key_id != key_id(&DIGEST), "byte {at}");
        }
        assert!(Claims::read(&token[1..]).is_none());
        assert!(Claims::read(&[]).is_none());
    }
}
