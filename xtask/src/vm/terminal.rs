// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Connects our terminal to the guest's console, for `cargo xtask shell`.

use nix::sys::termios::{self, SetArg, Termios};
use std::io::{IsTerminal, Stdin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The key that ends the guest from our side: Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

/// The terminal in raw mode, until dropped.
struct Raw {
    stdin: Stdin,
    before: Option<Termios>,
}

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let before = stdin.is_terminal().then(|| termios::tcgetattr(&stdin).ok()).flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            termios::cfmakeraw(&mut raw);
            // Without it the user sees each key twice, which is no reason to stop.
            let _ = termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw);
        }
        Raw { stdin, before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(&self.stdin, SetArg::TCSANOW, before);
        }
    }
}

/// Copies both ways until the guest ends or the user types [`ESCAPE`], which ends xtask as SIGTERM does.
pub(super) async fn attend(console: UnixStream) {
    let _raw = Raw::enter();
    let (mut from_guest, mut to_guest) = console.into_split();
    let mut keys = keys();
    let mut stdout = tokio::io::stdout();
    let mut buffer = [0; 4096];
    let mut typing = true;
    loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let shown = stdout.write_all(&buffer[..count]).await;
                    if shown.is_err() || stdout.flush().await.is_err() {
                        return;
                    }
                }
            },
            typed = keys.recv(), if typing => match typed {
                None => typing = false,
                Some(typed) if typed.contains(&ESCAPE) => {
                    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
                    typing = false;
                }
                Some(typed) => typing = to_guest.write_all(&typed).await.is_ok(),
            },
        }
    }
}

/// What is typed. A thread of its own reads it: tokio's stdin would keep the runtime from ending
/// until the next key.
fn keys() -> tokio::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = std::io::Read::read(&mut std::io::stdin().lock(), &mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
