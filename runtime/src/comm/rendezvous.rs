//! How the ranks of a job find each other: rank 0 listens at an abstract Unix socket whose name is a hash of the job's, the others
//! connect, and when all are there each gets the shared file. An abstract socket is gone with the process that holds it, so nothing
//! stays behind whatever happens. The connections stay open: an end of file says that a process is gone.

use super::Ranks;
use super::control::CONTROL_BYTES;
use crate::error::{Error, Result};
use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// First word of a greeting; its last digit is the version of what ranks say to each other.
const MAGIC: u32 = 0x574c_4401;
/// A greeting: magic, rank, world.
const HELLO_BYTES: usize = 12;
/// The answer to a greeting: 0 and the shared file, or the length of an error's text, which follows.
const ANSWER_BYTES: usize = 4;
/// Longest text of an answer.
const MAX_TEXT: u32 = 4096;
/// How long to wait between two tries to connect.
const RETRY: Duration = Duration::from_millis(5);

/// A group that has met.
#[derive(Debug)]
pub struct Met {
    /// The shared file: a control page, slabs behind it.
    pub file: OwnedFd,
    /// Connections to others by rank: rank 0 has all, the others have rank 0.
    pub peers: Vec<(u32, UnixStream)>,
}

/// Meets the other ranks.
///
/// # Errors
/// [`Error::Rank`] naming the rank that did not come within `deadline`, or that is of another world or user.
pub fn meet(ranks: &Ranks, deadline: Duration) -> Result<Met> {
    let end = Instant::now() + deadline;
    match ranks.rank {
        0 => listen(ranks, deadline, end),
        _ => connect(ranks, deadline, end),
    }
}

fn failed(rank: u32, cause: impl Into<String>) -> Error {
    Error::Rank { rank, at: "joining".into(), cause: cause.into() }
}

fn broken(what: &str, e: impl std::fmt::Display) -> Error {
    Error::Driver(format!("joining the other ranks: {what}: {e}"))
}

fn address(job: &str) -> Result<SocketAddr> {
    let name = format!("weldment-{}", &crate::blake3_hex(job.as_bytes())[..40]);
    SocketAddr::from_abstract_name(name).map_err(|e| broken("no address", e))
}

/// What is left until `end`; at least a little, since zero would mean for ever.
fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// A rank of another user is none of ours.
fn same_user(stream: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream);
    peer.is_ok_and(|peer| peer.uid == rustix::process::getuid())
}

fn listen(ranks: &Ranks, deadline: Duration, end: Instant) -> Result<Met> {
    let file =
        rustix::fs::memfd_create("weldment-ranks", MemfdFlags::CLOEXEC).map_err(|e| broken("memfd_create", e))?;
    rustix::fs::ftruncate(&file, CONTROL_BYTES).map_err(|e| broken("ftruncate", e))?;
    let mut peers: Vec<(u32, UnixStream)> = Vec::new();
    if ranks.world > 1 {
        let listener = UnixListener::bind_addr(&address(&ranks.job)?).map_err(|e| match e.kind() {
            ErrorKind::AddrInUse => failed(0, format!("another job of this host is called {:?} too", ranks.job)),
            _ => broken("bind", e),
        })?;
        listener.set_nonblocking(true).map_err(|e| broken("listen", e))?;
        let gathered = gather(ranks, &listener, &mut peers, deadline, end);
        if let Err(e) = gathered {
            // Whoever waits is told at once. What cannot be told will see the connection end.
            let text = e.to_string();
            for (_, stream) in &mut peers {
                let _ = stream
                    .write_all(&(text.len() as u32).to_le_bytes())
                    .and_then(|()| stream.write_all(text.as_bytes()));
            }
            return Err(e);
        }
    }
    peers.sort_by_key(|(rank, _)| *rank);
    for (rank, stream) in &peers {
        send_file(stream, &file).map_err(|e| failed(*rank, format!("it went away while it joined ({e})")))?;
    }
    Ok(Met { file, peers })
}

fn gather(
    ranks: &Ranks,
    listener: &UnixListener,
    peers: &mut Vec<(u32, UnixStream)>,
    deadline: Duration,
    end: Instant,
) -> Result<()> {
    while peers.len() + 1 < ranks.world as usize {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= end {
                    let missing = (1..ranks.world).find(|rank| peers.iter().all(|(peer, _)| peer != rank));
                    let cause = format!("it did not come within {} s", deadline.as_secs_f32());
                    return Err(failed(missing.unwrap_or_default(), cause));
                }
                std::thread::sleep(RETRY);
                continue;
            }
            Err(e) => return Err(broken("accept", e)),
        };
        if !same_user(&stream) {
            continue;
        }
        let mut hello = [0u8; HELLO_BYTES];
        let greeted = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(left(end))))
            .and_then(|()| stream.set_write_timeout(Some(Duration::from_secs(1))))
            .and_then(|()| stream.read_exact(&mut hello));
        // A connection that says nothing is a rank that died, which will be missed; or none of ours.
        if greeted.is_err() {
            continue;
        }
        let word = |at: usize| u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]);
        let (magic, rank, world) = (word(0), word(4), word(8));
        let wrong = if magic != MAGIC {
            Some(format!("it is of another version of this runtime ({magic:#x})"))
        } else if world != ranks.world {
            Some(format!("it believes that there are {world} ranks, rank 0 that there are {}", ranks.world))
        } else if rank == 0 || rank >= world || peers.iter().any(|(peer, _)| *peer == rank) {
            Some("there are two of this number".to_owned())
        } else {
            None
        };
        peers.push((rank, stream));
        if let Some(cause) = wrong {
            return Err(failed(rank, cause));
        }
    }
    Ok(())
}

fn connect(ranks: &Ranks, deadline: Duration, end: Instant) -> Result<Met> {
    let address = address(&ranks.job)?;
    let gone = |e: &std::io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            failed(0, format!("it did not gather the ranks within {} s", deadline.as_secs_f32()))
        }
        _ => failed(0, format!("it went away while the ranks joined ({e})")),
    };
    let mut stream = loop {
        match UnixStream::connect_addr(&address) {
            Ok(stream) if same_user(&stream) => break stream,
            Ok(_) => return Err(broken("rank 0", "it is of another user")),
            Err(_) if Instant::now() >= end => {
                return Err(failed(0, format!("it did not come within {} s", deadline.as_secs_f32())));
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    };
    let mut hello = [0u8; HELLO_BYTES];
    for (to, word) in hello.chunks_exact_mut(4).zip([MAGIC, ranks.rank, ranks.world]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    stream.write_all(&hello).map_err(|e| gone(&e))?;
    // Rank 0 names who is missing once its own deadline is over: give it the time to.
    stream
        .set_read_timeout(Some(left(end) + deadline / 4 + Duration::from_millis(200)))
        .map_err(|e| broken("socket", e))?;
    let file = match receive_file(&mut stream).map_err(|e| gone(&e))? {
        Ok(file) => file,
        Err(text) => return Err(told(&text)),
    };
    Ok(Met { file, peers: vec![(0, stream)] })
}

/// The error that rank 0 told, which names a rank.
fn told(text: &str) -> Error {
    let named = text.strip_prefix("rank ").and_then(|rest| rest.split_once(", joining: "));
    match named.and_then(|(rank, cause)| Some((rank.parse::<u32>().ok()?, cause))) {
        Some((rank, cause)) => failed(rank, cause),
        None => failed(0, text),
    }
}

fn send_file(stream: &UnixStream, file: &OwnedFd) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    let answer = [0u8; ANSWER_BYTES];
    rustix::net::sendmsg(stream, &[IoSlice::new(&answer)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The shared file, or the text of rank 0's error.
fn receive_file(stream: &mut UnixStream) -> std::io::Result<std::result::Result<OwnedFd, String>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut answer = [0u8; ANSWER_BYTES];
    let message =
        rustix::net::recvmsg(&*stream, &mut [IoSliceMut::new(&mut answer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes < ANSWER_BYTES {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let length = u32::from_le_bytes(answer);
    if length > 0 {
        let mut text = vec![0u8; length.min(MAX_TEXT) as usize];
        stream.read_exact(&mut text)?;
        return Ok(Err(String::from_utf8_lossy(&text).into_owned()));
    }
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    files.flatten().next().map(Ok).ok_or_else(|| ErrorKind::InvalidData.into())
}
