// sockjs-node: /echo gives every message back, /broadcast to all.

const http = require("http");
const sockjs = require("sockjs");

const server = http.createServer();

function service(prefix) {
  const made = sockjs.createServer({ log: () => {} });
  made.installHandlers(server, { prefix });
  return made;
}

service("/echo").on("connection", (connection) => {
  connection.on("data", (message) => connection.write(message));
});

const all = new Set();
service("/broadcast").on("connection", (connection) => {
  all.add(connection);
  connection.on("close", () => all.delete(connection));
  connection.on("data", (message) => {
    for (const each of all) each.write(message);
  });
});

server.listen(Number(process.argv[2]), "127.0.0.1");
