// The page's side: browser_files.py says what is signalled, file_transfer.py what is said on a channel.
"use strict";

const PIECE = 16 * 1024;
const BUFFER = 1 << 20;

const element = (id) => document.getElementById(id);
const show = (id, text) => { element(id).textContent = text; };

// --- signalling, with candidates in both directions as soon as they are found --------------------------------------

const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/signalling`);
const tell = (message) => socket.send(JSON.stringify(message));
let connection = null;
// Candidates may come before the answer; addIceCandidate does not take them then.
let early = [];

function connect(servers) {
  connection = new RTCPeerConnection({ iceServers: servers });
  connection.onicecandidate = ({ candidate }) => tell({ candidate });
  connection.oniceconnectionstatechange = () => {
    show("state", connection.iceConnectionState);
    // New credentials, and an offer, by way of onnegotiationneeded.
    if (connection.iceConnectionState === "failed") connection.restartIce();
  };
  connection.onnegotiationneeded = async () => {
    await connection.setLocalDescription();
    tell(connection.localDescription);
  };
  connection.onconnectionstatechange = () => {
    const isUp = connection.connectionState === "connected";
    element("download").disabled = element("upload").disabled = !isUp;
  };
  // An offer without a channel would be about nothing.
  connection.createDataChannel("first");
}

async function take(message) {
  if (message.servers) {
    connect(message.servers);
  } else if (message.sdp) {
    // An offer that was told twice has two answers.
    if (connection.signalingState !== "have-local-offer") return;
    await connection.setRemoteDescription(message);
    const waiting = early;
    early = [];
    for (const candidate of waiting) await connection.addIceCandidate(candidate);
  } else if (message.path) {
    const { kind, local, remote } = message.path;
    show("path", `${kind === "relay" ? "relayed" : "direct"}: ${remote} → ${local}`);
  } else if (connection.remoteDescription) {
    await connection.addIceCandidate(message.candidate);
  } else {
    early.push(message.candidate);
  }
}

// One after the other, in order.
let taken = Promise.resolve();
socket.onmessage = ({ data }) => { taken = taken.then(() => take(JSON.parse(data))).catch(fail); };
socket.onclose = () => fail(new Error("the program at the other end has hung up"));

function fail(error) {
  show("result", error.message);
}

// --- files ---------------------------------------------------------------------------------------------------------

function open(label) {
  show("result", "");
  element("progress").value = 0;
  const channel = connection.createDataChannel(label);
  channel.binaryType = "arraybuffer";
  channel.bufferedAmountLowThreshold = BUFFER / 2;
  return channel;
}

async function sha256(buffer) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// All of it is in memory: crypto.subtle has no digest that grows.
function download() {
  const channel = open("download");
  const pieces = [];
  let header = null;
  let received = 0;
  let isOver = false;
  channel.onclose = () => { if (!isOver) fail(new Error("the download has ended early")); };
  channel.onmessage = async ({ data }) => {
    if (typeof data !== "string") {
      pieces.push(data);
      received += data.byteLength;
      element("progress").value = received / header.size;
    } else if (header === null) {
      header = JSON.parse(data);
    } else {
      isOver = true;
      const file = new Blob(pieces);
      const digest = await sha256(await file.arrayBuffer());
      const isRight = received === header.size && digest === JSON.parse(data).sha256;
      channel.send(JSON.stringify(isRight ? { sha256: digest } : { error: "the SHA-256 is another one" }));
      if (!isRight) return fail(new Error("what came is not what was sent"));
      save(file, header.name);
      show("result", `downloaded ${header.name}, ${received} bytes, SHA-256 ${digest}`);
    }
  };
}

function save(file, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  // The browser has taken it by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function upload(file) {
  const channel = open("upload");
  const buffer = await file.arrayBuffer();
  const digest = await sha256(buffer);
  if (channel.readyState !== "open") await event(channel, "open");
  // Its answer: the SHA-256 of what came, or what is wrong.
  const answer = Promise.race([
    event(channel, "message").then(({ data }) => JSON.parse(data)),
    event(channel, "close").then(() => ({ error: "the upload has ended early" })),
  ]);
  let isAnswered = false;
  answer.then(() => { isAnswered = true; });
  channel.send(JSON.stringify({ name: file.name, size: file.size }));
  for (let start = 0; start < file.size && !isAnswered; start += PIECE) {
    channel.send(buffer.slice(start, start + PIECE));
    element("progress").value = Math.min(1, (start + PIECE) / file.size);
    // Else all of it would wait in the channel, which has an end.
    if (channel.bufferedAmount > BUFFER) await Promise.race([event(channel, "bufferedamountlow"), answer]);
  }
  if (!isAnswered) channel.send(JSON.stringify({ sha256: digest }));
  const { sha256: theirs, error } = await answer;
  channel.close();
  if (theirs !== digest) throw new Error(error ?? "what came there is not what was sent");
  show("result", `uploaded ${file.name}, ${file.size} bytes, SHA-256 ${digest}`);
}

const event = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

element("download").onclick = download;
element("upload").onchange = ({ target }) => {
  const [file] = target.files;
  // The same one may be chosen again.
  target.value = "";
  if (file) upload(file).catch(fail);
};
