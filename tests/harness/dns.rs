//! A DNS server with records that the test sets.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;

/// A DNS server.
#[derive(Clone)]
pub struct Dns {
    /// Its address.
    pub address: SocketAddr,
    held: Arc<Mutex<Records>>,
}

#[derive(Default)]
struct Records {
    records: HashMap<String, (Vec<Ipv4Addr>, u32)>,
    asked: HashMap<String, usize>,
}

impl Dns {
    /// Starts one without records: every name is NXDOMAIN, for one second.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start() -> Dns {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let dns = Dns {
            address: socket.local_addr().expect("bound"),
            held: Arc::default(),
        };
        let held = Arc::clone(&dns.held);
        tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                if let Some(answer) = answer(&packet[..length], &held) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        dns
    }

    /// Sets the addresses of `name`, with a TTL of `ttl` seconds.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr], ttl: u32) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.records
            .insert(name.to_owned(), (addresses.to_vec(), ttl));
    }

    /// Removes `name`.
    pub fn remove(&self, name: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.records.remove(name);
    }

    /// Number of queries for `name`.
    pub fn queries(&self, name: &str) -> usize {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.asked.get(name).copied().unwrap_or(0)
    }
}

/// Answers a query, by as much of RFC 1035 as the tests need.
fn answer(query: &[u8], held: &Mutex<Records>) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let (name, kind) = (labels.join("."), query.get(at..at + 2)?);
    let question = query.get(12..at + 4)?;
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    *held.asked.entry(name.clone()).or_default() += 1;
    let record = held.records.get(&name);
    let addresses = match (record, kind) {
        (Some((addresses, ttl)), [0, 1]) => addresses.iter().map(|a| (*a, *ttl)).collect(),
        _ => Vec::new(),
    };
    let code = if record.is_some() { 0 } else { 3 };
    let authority = u8::from(addresses.is_empty());
    let count = u8::try_from(addresses.len()).ok()?;
    let mut out = query.get(..2)?.to_vec();
    out.extend([0x85, 0x80 | code, 0, 1, 0, count, 0, authority, 0, 0]);
    out.extend_from_slice(question);
    for (address, ttl) in addresses {
        out.extend([0xc0, 12, 0, 1, 0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend([0, 4]);
        out.extend(address.octets());
    }
    if authority == 1 {
        // An SOA with a minimum of one second, the TTL of a negative answer.
        out.extend([0, 0, 6, 0, 1, 0, 0, 0, 1, 0, 22, 0, 0]);
        out.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
    }
    Some(out)
}
