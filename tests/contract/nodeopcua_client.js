// What an independent client sees of edgeqc's OPC UA server: node nodeopcua_client.js URL USER:PASSWORD...; a JSON object each.
const {
  OPCUAClient, MessageSecurityMode, SecurityPolicy, UserTokenType, AttributeIds, DataType, TimestampsToReturn,
  OPCUACertificateManager,
} = require("node-opcua");
const path = require("path");
const [, , url, ...users] = process.argv;
async function look(certificates, user, password) {
  const told = {};
  const client = OPCUAClient.create({
    applicationName: "scada", endpointMustExist: false, securityMode: MessageSecurityMode.SignAndEncrypt,
    securityPolicy: SecurityPolicy.Basic256Sha256, clientCertificateManager: certificates,
    connectionStrategy: { maxRetry: 0 },
  });
  await client.connect(url);
  let session;
  try {
    session = await client.createSession({ type: UserTokenType.UserName, userName: user, password });
  } catch (error) {
    await client.disconnect().catch(() => {});
    return { refused: error.message };
  }
  const ns = (await session.readNamespaceArray()).indexOf("urn:edgeqc");
  const id = (name) => `ns=${ns};s=${name}`;
  const objects = await session.browse("ObjectsFolder");
  told.found = objects.references.some((each) => each.browseName.name === "edgeqc");
  const station = await session.browse(id("Station.top"));
  told.children = station.references.map((each) => each.browseName.name).sort();
  const read = async (name) => (await session.read({ nodeId: id(name), attributeId: AttributeIds.Value })).value.value;
  told.verdict = await read("Station.top.Result.Verdict");
  told.json = JSON.parse(await read("Station.top.Result.Json"));
  const subscription = await session.createSubscription2({
    requestedPublishingInterval: 50, requestedLifetimeCount: 100, requestedMaxKeepAliveCount: 10,
    publishingEnabled: true, maxNotificationsPerPublish: 0,
  });
  let notices = 0;
  const item = await subscription.monitor(
    { nodeId: id("Box.Time"), attributeId: AttributeIds.Value },
    { samplingInterval: 50, queueSize: 10, discardOldest: true }, TimestampsToReturn.Both,
  );
  item.on("changed", () => { notices += 1; });
  for (let looks = 0; notices <= 5 && looks < 200; looks += 1) await new Promise((resolve) => setTimeout(resolve, 50));
  told.notices = notices;
  const call = async (method, inputs) => {
    const found = await session.call({ objectId: id("Station.top"), methodId: id(`Station.top.${method}`), inputArguments: inputs });
    return { status: found.statusCode.name, output: (found.outputArguments || []).map((each) => each.value) };
  };
  told.results = await call("GetResults", [{ dataType: DataType.UInt32, value: 1 }]);
  told.reset = (await call("ResetCounters", [])).status;
  told.write = (await session.writeSingleNode(id("Box.State"), { dataType: DataType.String, value: "normal" })).name;
  await subscription.terminate();
  await session.close();
  await client.disconnect();
  return told;
}
(async () => {
  const certificates = new OPCUACertificateManager({
    rootFolder: path.join(__dirname, "pki-client"), automaticallyAcceptUnknownCertificate: true,
  });
  await certificates.initialize();
  for (const each of users) console.log(JSON.stringify(await look(certificates, ...each.split(":"))));
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
