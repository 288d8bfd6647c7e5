// The browser's end of a call: an RTCPeerConnection that signals through `tell`, which the test provides.

let pc;
let channel;
const early = [];

function begin(configuration) {
  pc = new RTCPeerConnection(configuration);
  pc.onicecandidate = ({ candidate }) => tell('candidate', candidate && candidate.toJSON());
  pc.onconnectionstatechange = () => tell('state', pc.connectionState);
  pc.ondatachannel = (event) => use(event.channel);
}

function use(made) {
  channel = made;
  channel.binaryType = 'arraybuffer';
  channel.onopen = () => tell('open', channel.label);
  channel.onclose = () => tell('closed', channel.label);
  channel.onmessage = ({ data }) => tell('message', typeof data === 'string' ? data : [...new Uint8Array(data)]);
}

async function offer() {
  await pc.setLocalDescription();
  watch();
  return pc.localDescription.toJSON();
}

async function take(description) {
  await pc.setRemoteDescription(description);
  watch();
  for (const candidate of early.splice(0)) await pc.addIceCandidate(candidate);
}

async function answer(description) {
  await take(description);
  return offer();
}

async function add(candidate) {
  if (pc.remoteDescription) await pc.addIceCandidate(candidate);
  else early.push(candidate);
}

// Its camera's picture, in a secure page.
async function show() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: true });
  for (const track of stream.getTracks()) pc.addTrack(track, stream);
}

// A file of random bytes, in a secure page. Both give its SHA-256.

const CHUNK = 16384;
const MANY = 16 * CHUNK;
const PAUSE_MS = 10;
let hurries = false;

async function send(size) {
  const file = new Uint8Array(size);
  for (let at = 0; at < size; at += CHUNK) crypto.getRandomValues(file.subarray(at, at + CHUNK));
  channel.bufferedAmountLowThreshold = MANY / 2;
  for (let at = 0; at < size; at += CHUNK) {
    channel.send(file.subarray(at, at + CHUNK));
    if (channel.bufferedAmount > MANY) await new Promise((go) => { channel.onbufferedamountlow = go; });
    if (!hurries) await new Promise((go) => setTimeout(go, PAUSE_MS));
  }
  return digest(file);
}

function receive(size) {
  const file = new Uint8Array(size);
  let at = 0;
  return new Promise((done) => {
    channel.onmessage = ({ data }) => {
      file.set(new Uint8Array(data), at);
      at += data.byteLength;
      tell('progress', at);
      if (at === size) done(digest(file));
    };
  });
}

async function digest(file) {
  const bytes = new Uint8Array(await crypto.subtle.digest('SHA-256', file));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function watch() {
  const carrier = pc.sctp || pc.getSenders()[0] || pc.getReceivers()[0];
  const ice = carrier && carrier.transport && carrier.transport.iceTransport;
  if (ice) ice.onselectedcandidatepairchange = async () => tell('pair', await selected());
}

// Where data goes now: types of the local and the remote candidate; null: nowhere yet.
async function selected() {
  const report = await pc.getStats();
  const transport = [...report.values()].find((entry) => entry.type === 'transport');
  const pair = transport && report.get(transport.selectedCandidatePairId);
  if (!pair) return null;
  return [report.get(pair.localCandidateId).candidateType, report.get(pair.remoteCandidateId).candidateType];
}
