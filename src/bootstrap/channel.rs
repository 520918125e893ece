//! Sockets: frames and descriptors over a stream, and how one is connected, listened for and told apart.
//!
//! All sockets are non-blocking and close-on-exec from birth. Nothing here knows what the messages mean, and every
//! wait is a task, so the caller sets the deadline.

use std::{
    fmt,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::PollFlags,
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
    },
};

use super::{
    tasks::{ready, sleep},
    wire::{HEADER, Header, MAX_DESCRIPTORS, Message},
};
use crate::error::Error;

/// Non-blocking and close-on-exec.
pub(super) const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// Connections the kernel keeps for us until we take them; it lowers the number to its own limit.
const BACKLOG: i32 = 4096;
/// How long to wait when the kernel has too many descriptors under way; receivers take them meanwhile.
pub(super) const CROWDED: Duration = Duration::from_millis(2);

/// Why nothing more can be said or heard on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The other side closed it.
    Closed,
    /// The system says so.
    System(Errno),
    /// The other side sent what no rank sends.
    Garbled,
    /// Descriptors were sent, but this process may not have more.
    DescriptorsLost,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Closed => f.write_str("the connection was closed"),
            Broken::System(errno) => write!(f, "the connection broke: {}", std::io::Error::from(*errno)),
            Broken::Garbled => f.write_str("something came that no rank sends"),
            Broken::DescriptorsLost => f.write_str("this process may not open more files: raise `ulimit -n`"),
        }
    }
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNRESET | Errno::PIPE => Broken::Closed,
            errno => Broken::System(errno),
        }
    }
}

/// One end of a connection. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    socket: Arc<OwnedFd>,
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Channel { socket: Arc::new(socket) }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether both are the same end of the same connection.
    pub(super) fn is(&self, other: &Channel) -> bool {
        Arc::ptr_eq(&self.socket, &other.socket)
    }

    /// This end's address, of a TCP connection.
    pub(super) fn local_address(&self) -> Result<SocketAddr, Errno> {
        rustix::net::getsockname(&*self.socket)?.try_into()
    }

    /// Whom to name in a text.
    pub(super) fn peer_name(&self) -> String {
        let address = rustix::net::getpeername(&*self.socket).ok().flatten();
        match address.and_then(|address| SocketAddr::try_from(address).ok()) {
            Some(address) => address.to_string(),
            None => "a process on this host".into(),
        }
    }

    /// The socket itself, when nothing else is to be said here.
    pub(super) fn into_socket(self) -> crate::error::Result<OwnedFd> {
        Arc::try_unwrap(self.socket)
            .or_else(|shared| rustix::io::fcntl_dupfd_cloexec(&*shared, 0))
            .map_err(|errno| Error::system("a connection cannot be handed over", errno))
    }

    /// Waits until something can be read, the end of the connection included. Takes nothing.
    pub(super) async fn readable(&self) {
        loop {
            match rustix::net::recv(&*self.socket, &mut [0u8], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => ready(&self.socket, PollFlags::IN).await,
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// Sends one message; dropping this half way leaves the channel useless.
    pub(super) async fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), Broken> {
        self.send_bytes(&message.encode(descriptors.len()), descriptors).await
    }

    /// Sends bytes; the descriptors go with the first of them.
    pub(super) async fn send_bytes(&self, mut bytes: &[u8], mut descriptors: &[BorrowedFd<'_>]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(Broken::System(Errno::INVAL));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&*self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    descriptors = &[];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready(&self.socket, PollFlags::OUT).await,
                Err(Errno::TOOMANYREFS) => sleep(CROWDED).await,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives one message and what came along; dropping this half way leaves the channel useless.
    pub(super) async fn receive(&self) -> Result<(Message, Vec<OwnedFd>), Broken> {
        let mut descriptors = Vec::new();
        let mut header = [0; HEADER];
        self.fill(&mut header, &mut descriptors).await?;
        let header = Header::decode(header).ok_or(Broken::Garbled)?;
        let mut body = vec![0; header.length.into()];
        self.fill(&mut body, &mut descriptors).await?;
        if descriptors.len() != usize::from(header.descriptors) {
            return Err(Broken::Garbled);
        }
        let message = Message::decode(header, &body).ok_or(Broken::Garbled)?;
        Ok((message, descriptors))
    }

    /// Receives exactly `N` bytes, which no descriptor may accompany.
    pub(super) async fn receive_bytes<const N: usize>(&self) -> Result<[u8; N], Broken> {
        let mut bytes = [0; N];
        let mut descriptors = Vec::new();
        self.fill(&mut bytes, &mut descriptors).await?;
        if descriptors.is_empty() { Ok(bytes) } else { Err(Broken::Garbled) }
    }

    /// Fills `bytes`, never reading past them, so that what follows stays for whoever owns the socket next.
    async fn fill(&self, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<(), Broken> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&*self.socket, &mut [IoSliceMut::new(rest)], &mut control, flags) {
                Ok(received) => {
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(arrived) = message {
                            descriptors.extend(arrived);
                        }
                    }
                    if descriptors.len() > MAX_DESCRIPTORS {
                        return Err(Broken::Garbled);
                    }
                    // Cut off: more were sent than there is room for, which no rank does, or than we may open.
                    if received.flags.contains(ReturnFlags::CTRUNC) {
                        let sent_too_many = descriptors.len() == MAX_DESCRIPTORS;
                        return Err(if sent_too_many { Broken::Garbled } else { Broken::DescriptorsLost });
                    }
                    if received.bytes == 0 {
                        return Err(Broken::Closed);
                    }
                    filled += received.bytes;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready(&self.socket, PollFlags::IN).await,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// A socket that others connect to. Closing it also ends connections that nobody has taken yet, in forked
/// children too, who would otherwise hold them open without ever answering.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Arc<OwnedFd>,
    tcp: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
    }
}

impl Listener {
    /// Listens on an abstract Unix socket of this name.
    pub(super) fn unix(name: &[u8]) -> Result<Self, Errno> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Listener { socket: Arc::new(socket), tcp: false })
    }

    /// Listens on a TCP address; port 0 takes any.
    pub(super) fn tcp(address: SocketAddr) -> Result<Self, Errno> {
        let socket = rustix::net::socket_with(family(address.ip()), SocketType::STREAM, FLAGS, None)?;
        // Connections of an earlier world may still be closing.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Listener { socket: Arc::new(socket), tcp: true })
    }

    /// Where a TCP socket listens.
    pub(super) fn address(&self) -> Result<SocketAddr, Errno> {
        rustix::net::getsockname(&*self.socket)?.try_into()
    }

    /// Takes the next connection.
    pub(super) async fn accept(&self) -> Result<Channel, Errno> {
        loop {
            match rustix::net::accept_with(&*self.socket, FLAGS) {
                Ok(socket) => {
                    // The option fails only on a connection that is gone already.
                    if !self.tcp || sockopt::set_tcp_nodelay(&socket, true).is_ok() {
                        return Ok(Channel::new(socket));
                    }
                }
                Err(Errno::AGAIN) => ready(&self.socket, PollFlags::IN).await,
                // accept(2): errors of the connection itself, which is gone.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Connects to an abstract Unix socket; succeeds or fails at once.
pub(super) fn connect_unix(name: &[u8]) -> Result<Channel, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    let address = SocketAddrUnix::new_abstract_name(name)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(Channel::new(socket)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Connects to a TCP address.
pub(super) async fn connect_tcp(address: SocketAddr) -> Result<Channel, Errno> {
    let socket = Arc::new(rustix::net::socket_with(family(address.ip()), SocketType::STREAM, FLAGS, None)?);
    sockopt::set_tcp_nodelay(&*socket, true)?;
    match rustix::net::connect(&*socket, &address) {
        // An interrupted attempt goes on in the background, as a non-blocking one does.
        Err(Errno::INPROGRESS | Errno::INTR) => {
            ready(&socket, PollFlags::OUT).await;
            while rustix::net::getpeername(&*socket).is_err() {
                sockopt::socket_error(&*socket)??;
                ready(&socket, PollFlags::OUT).await;
            }
        }
        outcome => outcome?,
    }
    Ok(Channel { socket })
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Two connected Unix sockets.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)
}

/// The process (0 where it has no number here) and the user at the other end of a Unix socket: of a listener those
/// who began to listen, of a connection those who connected.
pub(super) fn credentials(socket: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    credentials_of_number(socket.as_raw_fd())
}

/// The same of a descriptor that may not be open, or be anything.
pub(super) fn credentials_of_number(descriptor: RawFd) -> Result<(u32, u32), Errno> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // rustix reads the same option, but into a type that cannot hold the 0 of a process in another PID namespace.
    // SAFETY: `peer` and `length` are valid for writing, and `length` is the size of `peer`; the kernel checks the
    // descriptor, and asking changes nothing.
    let code = unsafe {
        libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &mut length)
    };
    if code != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok((peer.pid.cast_unsigned(), peer.uid))
}
