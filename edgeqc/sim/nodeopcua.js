// An OPC UA server by another vendor: node nodeopcua.js TAGS PERIOD_MS, run where node-opcua is installed.
// User edge, password s3cret; each tag counts periods; "Toggle" is 1 and 0 in turn, every 503 ms, from a line on stdin to the next.
// Prints READY <url> ns=<index>.
const { OPCUAServer, DataType, SecurityPolicy, MessageSecurityMode, OPCUACertificateManager } = require("node-opcua");
const path = require("path");
const [, , tags, period] = process.argv;
(async () => {
  const trust = new OPCUACertificateManager({
    rootFolder: path.join(process.cwd(), "pki"),
    automaticallyAcceptUnknownCertificate: true,
  });
  await trust.initialize();
  const server = new OPCUAServer({
    port: 0,
    hostname: "127.0.0.1",
    serverInfo: { applicationUri: "urn:edgeqc:test:node-opcua" },
    serverCertificateManager: trust,
    securityPolicies: [SecurityPolicy.Basic256Sha256],
    securityModes: [MessageSecurityMode.SignAndEncrypt],
    allowAnonymous: false,
    userManager: { isValidUser: (user, password) => user === "edge" && password === "s3cret" },
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  const own = space.getOwnNamespace();
  const line = own.addObject({ organizedBy: space.rootFolder.objects, browseName: "Line" });
  const variables = [];
  for (let index = 0; index < +tags; index++) {
    const variable = own.addVariable({
      componentOf: line, browseName: "Tag" + index, nodeId: "s=Tag" + index, dataType: "Double",
      minimumSamplingInterval: 0,
    });
    variable.setValueFromSource({ dataType: DataType.Double, value: 0 });
    variables.push(variable);
  }
  const toggle = own.addVariable({
    componentOf: line, browseName: "Toggle", nodeId: "s=Toggle", dataType: "Double", minimumSamplingInterval: 0,
  });
  toggle.setValueFromSource({ dataType: DataType.Double, value: 0 });
  // a PLC's side of the handshake, and its program: it acknowledges what it has taken, and moves its heartbeat
  const handshake = {};
  for (const [name, type, value] of [
    ["Trigger", "UInt32", 0], ["PartId", "String", ""], ["ResultAck", "UInt32", 0], ["PlcHeartbeat", "UInt16", 0],
    ["Recipe", "UInt16", 0], ["ResultSequence", "UInt32", 0], ["ResultPartId", "String", ""],
    ["ResultPass", "Boolean", false], ["ResultFail", "Boolean", false], ["ResultValid", "Boolean", false],
    ["ResultCode", "UInt16", 0], ["ResultScore", "Float", 0], ["Busy", "Boolean", false], ["Ready", "Boolean", false],
    ["Fault", "Boolean", false], ["Overrun", "Boolean", false], ["Stop", "Boolean", false],
    ["TriggerAck", "UInt32", 0],
    ["ResultsWaiting", "UInt16", 0], ["Heartbeat", "UInt16", 0],
  ]) {
    handshake[name] = own.addVariable({
      componentOf: line, browseName: name, nodeId: "s=Line." + name, dataType: type, minimumSamplingInterval: 0,
      value: { dataType: DataType[type], value },
    });
  }
  const read = (name) => handshake[name].readValue().value.value;
  const put = (name, type, value) => handshake[name].setValueFromSource({ dataType: DataType[type], value });
  let scans = 0;
  setInterval(() => {
    scans += 1;
    if (read("ResultValid") && read("ResultSequence") !== read("ResultAck")) {
      put("ResultAck", "UInt32", read("ResultSequence"));
    }
    if (scans % 10 === 0) put("PlcHeartbeat", "UInt16", (scans / 10) & 0xffff);
  }, 5);
  await server.start();
  const port = server.endpoints[0].port;
  let count = 0;
  setInterval(() => {
    count += 1;
    for (const variable of variables) variable.setValueFromSource({ dataType: DataType.Double, value: count });
  }, +period);
  let on = 0;
  let swing = null;
  process.stdin.on("data", () => {
    if (swing !== null) {
      clearInterval(swing);
      swing = null;
      return;
    }
    swing = setInterval(() => {
      on = 1 - on;
      toggle.setValueFromSource({ dataType: DataType.Double, value: on });
    }, 503);  // so that it meets every phase of publishing and of the grid
  });
  console.log(`READY opc.tcp://127.0.0.1:${port} ns=${own.index}`);
})().catch((error) => { console.error(error); process.exit(1); });
