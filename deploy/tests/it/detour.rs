//! A way to a broker that can be closed: whoever takes it loses the log while others still have it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;

/// Hands on what clients and a broker on 127.0.0.1 say to each other, and tells the clients that the broker is here.
pub(crate) struct Detour {
    address: SocketAddr,
    /// The connections of both sides; `None` while it is closed.
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Detour {
    pub(crate) fn to(bootstrap_servers: &str) -> Self {
        let broker: SocketAddr = bootstrap_servers.parse().expect("the address of a broker");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let connections = Arc::clone(&open);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                // Who comes while it is closed, or while the broker is away, is sent away.
                if let Some(connections) = &mut *connections.lock()
                    && let Ok(broker_side) = TcpStream::connect(broker)
                {
                    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                    connections.extend([clone(&client), clone(&broker_side)]);
                    let (requests, responses) = ((clone(&client), clone(&broker_side)), (broker_side, client));
                    std::thread::spawn(move || ended(copy(requests)));
                    std::thread::spawn(move || ended(copy_responses(responses, broker, address)));
                }
            }
        });
        Self { address, open }
    }

    pub(crate) fn bootstrap_servers(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn close(&self) {
        for connection in self.open.lock().take().into_iter().flatten() {
            // The other side may have ended it.
            drop(connection.shutdown(Shutdown::Both));
        }
    }

    pub(crate) fn open(&self) {
        self.open.lock().get_or_insert_default();
    }
}

/// A connection ends one way or another: each side sees that the other is gone.
fn ended((from, to, _): (TcpStream, TcpStream, io::Result<()>)) {
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

fn copy((mut from, mut to): (TcpStream, TcpStream)) -> (TcpStream, TcpStream, io::Result<()>) {
    let copied = io::copy(&mut from, &mut to).map(|_| ());
    (from, to, copied)
}

/// In a response a broker's address is its host and then its port, as four bytes.
fn copy_responses(
    (mut from, mut to): (TcpStream, TcpStream),
    broker: SocketAddr,
    here: SocketAddr,
) -> (TcpStream, TcpStream, io::Result<()>) {
    let named =
        |address: SocketAddr| [address.ip().to_string().as_bytes(), &u32::from(address.port()).to_be_bytes()].concat();
    let (theirs, ours) = (named(broker), named(here));
    assert_eq!(theirs.len(), ours.len(), "both are on one host");
    let mut copy = || -> io::Result<()> {
        loop {
            let mut length = [0; 4];
            from.read_exact(&mut length)?;
            let mut response = vec![0; u32::from_be_bytes(length) as usize];
            from.read_exact(&mut response)?;
            let places: Vec<usize> =
                response.windows(theirs.len()).enumerate().filter(|(_, w)| *w == theirs).map(|(at, _)| at).collect();
            for at in places {
                response[at..at + ours.len()].copy_from_slice(&ours);
            }
            to.write_all(&length)?;
            to.write_all(&response)?;
        }
    };
    let copied = copy();
    (from, to, copied)
}
